"""``checkpoint_config``, ``log_config``, ``custom_hooks``."""

import ast
from typing import Any, Dict, List, Mapping

import libcst as cst

from .dict_source import drop, edit_dict, entries_of
from .guarded_types import short
from .loops import BEST
from .migration import Migration
from .nan_hooks import (
    AUTOPSY,
    HOOKS,
    IN_A_ROW,
    guard_options,
    looks_alike,
    strictest,
)

__all__ = ['migrate_custom_hooks', 'migrate_hooks']

CHECKPOINT = (
    'interval',
    'by_epoch',
    'save_optimizer',
    'out_dir',
    'max_keep_ckpts',
    'save_last',
    'filename_tmpl',
)
BACKENDS = {
    'TensorboardLoggerHook': 'TensorboardVisBackend',
    'WandbLoggerHook': 'WandbVisBackend',
    'MMDetWandbHook': 'WandbVisBackend',
    'MlflowLoggerHook': 'MLflowVisBackend',
    'ClearMLLoggerHook': 'ClearMLVisBackend',
    'NeptuneLoggerHook': 'NeptuneVisBackend',
    'DvcliveLoggerHook': 'DVCLiveVisBackend',
}
BACKEND_KEYS = ('init_kwargs', 'exp_name', 'tags', 'params')
COMMON = ('type', 'by_epoch', 'interval', 'ignore_last', 'reset_flag')


def migrate_hooks(m: Migration) -> None:
    made: Dict[str, Any] = {}
    if 'checkpoint_config' in m.old:
        made['checkpoint'] = checkpoint(m)
    elif m.counts_anew and follows_loop(m):
        made['checkpoint'] = dict(by_epoch=m.loop.by_epoch)
    best = {
        key: m.keep('evaluation', key)
        for key in BEST
        if key in m.own('evaluation')
    }
    if best and made.get('checkpoint', {}) is not None:
        made.setdefault('checkpoint', dict(type='CheckpointHook'))
        made['checkpoint'].update(best)
        if best.get('save_best') and best['save_best'].value != 'auto':
            m.changed(
                ('evaluation', 'save_best'),
                'save_best goes to the checkpoint hook; it names a metric '
                "with its prefix there, as in 'coco/bbox_mAP'",
            )
    if m.own('log_config'):
        made['logger'] = logger(m)
    elif m.counts_anew and {'log_config', 'log_processor'} & {*m.inherited}:
        m.new['log_processor'] = dict(by_epoch=m.loop.by_epoch)
    m.hooks = {**made, **m.hooks}


def follows_loop(m: Migration) -> bool:
    """Does a base of 1.x count what its loop, and not another one's, counts?

    mmcv sets what a config does not say by the runner, MMEngine does not.
    """
    inherited = m.inherited.get('checkpoint_config') or {}
    return bool(inherited) and 'by_epoch' not in inherited


def checkpoint(m: Migration) -> Any:
    if m.cfg['checkpoint_config'] is None:
        m.done('checkpoint_config', 'None -> default_hooks.checkpoint=None')
        return None
    own = m.own('checkpoint_config')
    made: Dict[str, Any] = dict(type=own.get('type', 'CheckpointHook'))
    is_new = m.counts_anew and follows_loop(m)
    if 'by_epoch' not in own and (is_new or not m.loop.by_epoch):
        made['by_epoch'] = m.loop.by_epoch
    for key in CHECKPOINT:
        if key in own:
            made[key] = m.keep('checkpoint_config', key)
    dropped = sorted({*own} - {*CHECKPOINT, 'type'})
    if dropped:
        m.changed('checkpoint_config', f'{", ".join(dropped)}: left out')
    m.done(
        'checkpoint_config', 'checkpoint_config -> default_hooks.checkpoint'
    )
    return made


def logger(m: Migration) -> Dict[str, Any]:
    own = m.own('log_config')
    made: Dict[str, Any] = dict(type='LoggerHook')
    processor: Dict[str, Any] = dict(type='LogProcessor')
    if 'interval' in own:
        made['interval'] = m.keep('log_config', 'interval')
        # 1.x logs means over its interval, MMEngine over a window.
        processor['window_size'] = m.keep('log_config', 'interval')
    said = [hook.get('by_epoch') for hook in own.get('hooks') or []]
    # A part for _base_ may not know the loop.
    processor['by_epoch'] = m.loop.by_epoch and False not in said
    m.new['log_processor'] = processor
    m.done('log_config', 'log_config -> default_hooks.logger, log_processor')
    backends: List[Any] = []
    for hook in own.get('hooks') or []:
        kind = short(hook.get('type'))
        if kind == 'TextLoggerHook':
            continue
        if kind not in BACKENDS:
            m.left('log_config', f'{kind} has no backend in MMEngine')
            continue
        keys = {key: hook[key] for key in BACKEND_KEYS if key in hook}
        backends.append(dict(type=BACKENDS[kind], **keys))
        m.done('log_config', f'{kind} -> {BACKENDS[kind]}')
        lost = sorted({*hook} - {*COMMON, *BACKEND_KEYS})
        if lost:
            m.left(
                'log_config',
                f'{", ".join(lost)} of {kind}: see the '
                f'options of {BACKENDS[kind]}',
            )
    if backends:
        there = m.inherited.get('visualizer')
        made_by = {} if there else {'type': 'Visualizer'}
        backends.insert(0, dict(type='LocalVisBackend'))
        m.new['visualizer'] = dict(**made_by, vis_backends=backends)
    return made


def migrate_custom_hooks(m: Migration, is_1x: bool) -> None:
    """Hand-written guards go, and EMA gets its 2.x form."""
    for name in ('custom_hooks', 'default_hooks'):
        node = m.source.assigned.get(name)
        if node is None:
            continue
        edited: Any = node.visit(Edit(m, is_1x and name == 'custom_hooks'))
        if not edited.deep_equals(node):
            m.source.assigned[name] = edited
            m.new.setdefault(name, None)
    for hook in m.inherited.get('custom_hooks') or []:
        if short(hook.get('type')) in HOOKS and 'custom_hooks' not in (
            m.source.assigned
        ):
            m.left(
                (),
                f'{short(hook["type"])} is inherited: remove it from '
                'its base, too',
            )


class Edit(cst.CSTTransformer):
    """Of the hooks in a list, or in a dict."""

    def __init__(self, m: Migration, is_1x: bool) -> None:
        super().__init__()
        self.m, self.is_1x = m, is_1x

    def leave_List(self, original_node: Any, updated_node: Any) -> Any:
        return self.edit(updated_node, original_node.elements)

    def leave_Dict(self, original_node: Any, updated_node: Any) -> Any:
        return self.edit(updated_node, original_node.elements)

    def leave_Call(self, original_node: Any, updated_node: Any) -> Any:
        return self.edit(updated_node, original_node.args)

    def edit(self, node: Any, parts: Any) -> Any:
        gone = []
        for index, part in enumerate(parts):
            options = read(part.value)
            kind = short(options.get('type'))
            line = self.m.source.positions[part].start.line
            if kind in HOOKS:
                self.replace(line, kind, options)
                gone.append(index)
            elif looks_alike(kind):
                told = (
                    f'{kind} looks like a guard of your own: a hook cannot '
                    'veto an update, the wrapper does; delete it if so'
                )
                self.m.notes.left.append((line, told))
            elif kind == 'EMAHook' and self.is_1x:
                node = self.averaging(node, index, line, options)
            elif self.is_1x and kind != 'None':
                told = (
                    f'{kind} was written for mmcv: its stages have other '
                    'arguments in MMEngine (batch_idx, data_batch, outputs)'
                )
                self.m.notes.left.append((line, told))
        return drop(node, gone) if gone else node

    def replace(
        self, line: int, kind: str, options: Mapping[str, Any]
    ) -> None:
        hand = HOOKS[kind]
        more = f' and {AUTOPSY["type"]}' if hand.hooks else ''
        self.m.notes.done.append(
            (line, f'{kind} -> the guard{more}: {hand.why}')
        )
        for name in hand.hooks:
            self.m.hooks[name] = dict(AUTOPSY)
        policy = guard_options(hand, options)
        if policy:
            wrapper = self.m.new.setdefault('optim_wrapper', {})
            wrapper['guard'] = strictest(wrapper.get('guard', {}), policy)
            told = (
                f'{hand.limit}={options[hand.limit]} -> {policy}: {IN_A_ROW}'
            )
            self.m.notes.changed.append((line, told))
        elif hand.stops:
            told = (
                f'{kind} ended the run; now a bad update is skipped, and '
                'guard.max_consecutive_skips in a row end it (20 unless set; '
                '1 is the first)'
            )
            self.m.notes.changed.append((line, told))

    def averaging(
        self, node: Any, index: int, line: int, options: Mapping[str, Any]
    ) -> Any:
        momentum = options.get('momentum', 0.0002)
        interval = options.get('interval', 1)
        changes: Dict[str, Any] = dict(warm_up=None, resume_from=None)
        if 'momentum' not in options or interval != 1:
            changes['momentum'] = momentum**interval  # as mmcv has it
        told = 'EMAHook: the averages are the state_dict of a checkpoint now'
        if momentum > 1 / options.get('warm_up', 100):
            told += ', and its warm-up is left out (MomentumAnnealingEMA)'
        self.m.notes.changed.append((line, told))
        name = 'args' if isinstance(node, cst.Call) else 'elements'
        parts = list(getattr(node, name))
        parts[index] = parts[index].with_changes(
            value=edit_dict(parts[index].value, changes)
        )
        return node.with_changes(**{name: parts})


def read(node: Any) -> Dict[str, Any]:
    """Literals of a dict in the source; a name for what is one."""
    made: Dict[str, Any] = {}
    for key, value in (entries_of(node) or {}).items():
        try:
            made[key] = eval_literal(value)
        except ValueError:
            if key == 'type':
                made[key] = cst.Module([]).code_for_node(value)
    return made


def eval_literal(node: cst.BaseExpression) -> Any:
    return ast.literal_eval(cst.Module([]).code_for_node(node))
