"""Migration of ``checkpoint_config``, ``log_config`` and ``custom_hooks``."""

import ast
from typing import Iterable, List, Mapping, Optional, Sequence

import libcst as cst

from .config_value import ConfigDict, ConfigValue, select
from .dict_source import (
    Container,
    Part,
    all_parts,
    drop,
    edit_dict,
    entries_of,
    with_parts,
)
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

# Options that MMEngine's CheckpointHook shares with that of mmcv.
CHECKPOINT = (
    'interval',
    'by_epoch',
    'save_optimizer',
    'out_dir',
    'max_keep_ckpts',
    'save_last',
    'filename_tmpl',
)
# The logger hooks of mmcv and its projects, and the backends of MMEngine's
# visualizer that write to the same service.
BACKENDS = {
    'TensorboardLoggerHook': 'TensorboardVisBackend',
    'WandbLoggerHook': 'WandbVisBackend',
    'MMDetWandbHook': 'WandbVisBackend',
    'MlflowLoggerHook': 'MLflowVisBackend',
    'ClearMLLoggerHook': 'ClearMLVisBackend',
    'NeptuneLoggerHook': 'NeptuneVisBackend',
    'DvcliveLoggerHook': 'DVCLiveVisBackend',
}
# Options that mean the same to a logger hook and to its backend.
BACKEND_KEYS = ('init_kwargs', 'exp_name', 'tags', 'params')
# Options of all logger hooks of mmcv, for which MMEngine has the LoggerHook.
COMMON = ('type', 'by_epoch', 'interval', 'ignore_last', 'reset_flag')


def migrate_hooks(m: Migration) -> None:
    """Turn the hook configs of 1.x into entries of ``default_hooks``."""
    made: ConfigDict = {}
    if 'checkpoint_config' in m.old:
        made['checkpoint'] = checkpoint(m)
    elif m.counts_anew and follows_loop(m):
        # Without by_epoch the hook would still count in the base's unit.
        made['checkpoint'] = dict(by_epoch=m.loop.by_epoch)
    evaluation = m.set_here('evaluation')
    # mmcv's EvalHook saved the best checkpoint; in MMEngine the
    # CheckpointHook does.
    best = {}
    for key in BEST:
        if key in evaluation:
            best[key] = m.keep('evaluation', key)
    if best and made.get('checkpoint', {}) is not None:
        made.setdefault('checkpoint', dict(type='CheckpointHook'))
        made['checkpoint'].update(best)
        if best.get('save_best') and best['save_best'].value != 'auto':
            m.changed(
                ('evaluation', 'save_best'),
                'save_best goes to the checkpoint hook; it names a metric '
                "with its prefix there, as in 'coco/bbox_mAP'",
            )
    if m.set_here('log_config'):
        made['logger'] = logger(m)
    elif m.counts_anew and {'log_config', 'log_processor'} & {*m.inherited}:
        m.new['log_processor'] = dict(by_epoch=m.loop.by_epoch)
    # The hooks of the guard stand last, in the order of its overlay.
    m.hooks = {**made, **m.hooks}


def follows_loop(m: Migration) -> bool:
    """Whether the bases' checkpoint interval is in the unit of the loop.

    Without ``by_epoch`` mmcv takes the unit of the runner, MMEngine takes
    epochs.
    """
    inherited = m.inherited.get('checkpoint_config') or {}
    return bool(inherited) and 'by_epoch' not in inherited


def checkpoint(m: Migration) -> Optional[ConfigDict]:
    """Return the CheckpointHook; None if the config switches it off."""
    if m.cfg['checkpoint_config'] is None:
        m.done('checkpoint_config', 'None -> default_hooks.checkpoint=None')
        return None
    config = m.set_here('checkpoint_config')
    made: ConfigDict = dict(type=config.get('type', 'CheckpointHook'))
    # The default of MMEngine is by_epoch=True, that of mmcv is the unit of
    # the runner.
    is_new = m.counts_anew and follows_loop(m)
    if 'by_epoch' not in config and (is_new or not m.loop.by_epoch):
        made['by_epoch'] = m.loop.by_epoch
    for key in CHECKPOINT:
        if key in config:
            made[key] = m.keep('checkpoint_config', key)
    dropped = sorted({*config} - {*CHECKPOINT, 'type'})
    if dropped:
        m.changed('checkpoint_config', f'{", ".join(dropped)}: left out')
    m.done(
        'checkpoint_config', 'checkpoint_config -> default_hooks.checkpoint'
    )
    return made


def logger(m: Migration) -> ConfigDict:
    """Return the LoggerHook; set the log processor and the visualizer."""
    config = m.set_here('log_config')
    made: ConfigDict = dict(type='LoggerHook')
    processor: ConfigDict = dict(type='LogProcessor')
    if 'interval' in config:
        made['interval'] = m.keep('log_config', 'interval')
        # 1.x logs means over its interval, MMEngine over a window.
        processor['window_size'] = m.keep('log_config', 'interval')
    hooks = config.get('hooks') or []
    units = [hook.get('by_epoch') for hook in hooks]
    # A file that is only a base of other files may not show the loop; then
    # by_epoch=False of a logger hook shows that it counts iterations.
    by_epoch = m.loop.by_epoch and False not in units
    # MMEngine's default is True; what a part leaves open, the config that
    # inherits it can set.
    if m.loop.is_known or not by_epoch:
        processor['by_epoch'] = by_epoch
    m.new['log_processor'] = processor
    m.done('log_config', 'log_config -> default_hooks.logger, log_processor')
    backends = vis_backends(m, hooks)
    if backends:
        has_visualizer = bool(m.inherited.get('visualizer'))
        visualizer: ConfigDict = {}
        # An inherited visualizer has a type, which a project may have changed.
        if not has_visualizer:
            visualizer['type'] = 'Visualizer'
        # The list replaces MMEngine's default, so the default is repeated.
        backends.insert(0, dict(type='LocalVisBackend'))
        visualizer['vis_backends'] = backends
        m.new['visualizer'] = visualizer
    return made


def vis_backends(
    m: Migration, hooks: Iterable[Mapping[str, ConfigValue]]
) -> List[ConfigDict]:
    """Return MMEngine's backend for each logger hook that has one."""
    backends: List[ConfigDict] = []
    for hook in hooks:
        kind = short(hook.get('type'))
        # MMEngine's LoggerHook writes the text log.
        if kind == 'TextLoggerHook':
            continue
        if kind not in BACKENDS:
            m.left('log_config', f'{kind} has no backend in MMEngine')
            continue
        options = select(hook, BACKEND_KEYS)
        backends.append(dict(type=BACKENDS[kind], **options))
        m.done('log_config', f'{kind} -> {BACKENDS[kind]}')
        lost = sorted({*hook} - {*COMMON, *BACKEND_KEYS})
        if lost:
            m.left(
                'log_config',
                f'{", ".join(lost)} of {kind}: see the '
                f'options of {BACKENDS[kind]}',
            )
    return backends


def migrate_custom_hooks(m: Migration, is_1x: bool) -> None:
    """Remove hand-written guards, and give the EMAHook its form of 2.x."""
    for name in ('custom_hooks', 'default_hooks'):
        node = m.source.assigned.get(name)
        if node is None:
            continue
        # default_hooks is a key of 2.x: its hooks were written for MMEngine.
        edit = HookEdit(m, is_1x and name == 'custom_hooks')
        edited = node.visit(edit)
        assert isinstance(edited, cst.BaseExpression)
        if not edited.deep_equals(node):
            m.source.assigned[name] = edited
            # None means no new value: place() takes the edited source.
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


class HookEdit(cst.CSTTransformer):
    """An edit of the hooks in a list or a dict.

    Args:
        m: The migration, which takes the notes and the new hooks.
        is_1x: Whether the hooks were written for mmcv 1.x.
    """

    def __init__(self, m: Migration, is_1x: bool) -> None:
        super().__init__()
        self.m, self.is_1x = m, is_1x

    def leave_List(
        self, original_node: cst.List, updated_node: cst.List
    ) -> Container:
        """Edit the hooks of a list."""
        return self.edit(updated_node, original_node.elements)

    def leave_Dict(
        self, original_node: cst.Dict, updated_node: cst.Dict
    ) -> Container:
        """Edit the hooks of a dict."""
        return self.edit(updated_node, original_node.elements)

    def leave_Call(
        self, original_node: cst.Call, updated_node: cst.Call
    ) -> Container:
        """Edit the hooks of ``dict(...)``."""
        return self.edit(updated_node, original_node.args)

    def edit(self, node: Container, parts: Sequence[Part]) -> Container:
        """Replace or report each hook among the entries of a container.

        Args:
            node: The container, whose entries may be edited already.
            parts: The container's original entries. Only original nodes have
                known lines.
        """
        gone = []
        for index, part in enumerate(parts):
            options = read_literals(part.value)
            kind = short(options.get('type'))
            line = self.m.source.positions[part].start.line
            if kind in HOOKS:
                # Removed at the end, so that the indices stay valid.
                self.replace(line, kind, options)
                gone.append(index)
            elif looks_alike(kind):
                note = (
                    f'{kind} looks like a guard of your own: a hook cannot '
                    'veto an update, the wrapper does; delete it if so'
                )
                self.m.notes.left.append((line, note))
            elif kind == 'EMAHook' and self.is_1x:
                node = self.averaging(node, index, line, options)
            elif self.is_1x and kind != 'None':
                note = (
                    f'{kind} was written for mmcv: its stages have other '
                    'arguments in MMEngine (batch_idx, data_batch, outputs)'
                )
                self.m.notes.left.append((line, note))
        if not gone:
            return node
        return drop(node, gone)

    def replace(
        self, line: int, kind: str, options: Mapping[str, ConfigValue]
    ) -> None:
        """Note that the guard replaces a hook; take over the hook's limit."""
        hand = HOOKS[kind]
        more = ''
        if hand.hooks:
            more = f' and {AUTOPSY["type"]}'
        self.m.notes.done.append(
            (line, f'{kind} -> the guard{more}: {hand.why}')
        )
        for name in hand.hooks:
            self.m.hooks[name] = dict(AUTOPSY)
        policy = guard_options(hand, options)
        if policy:
            # Several hooks may have a limit: the strictest ends the run first.
            wrapper = self.m.new.setdefault('optim_wrapper', {})
            wrapper['guard'] = strictest(wrapper.get('guard', {}), policy)
            note = (
                f'{hand.limit}={options[hand.limit]} -> {policy}: {IN_A_ROW}'
            )
            self.m.notes.changed.append((line, note))
        elif hand.stops:
            note = (
                f'{kind} ended the run; now a bad update is skipped, and '
                'guard.max_consecutive_skips in a row end it (20 unless set; '
                '1 is the first)'
            )
            self.m.notes.changed.append((line, note))

    def averaging(
        self,
        node: ConfigValue,
        index: int,
        line: int,
        options: Mapping[str, ConfigValue],
    ) -> ConfigValue:
        """Return the container with its EMAHook in the form of MMEngine."""
        # The defaults are those of mmcv's EMAHook.
        momentum = options.get('momentum', 0.0002)
        interval = options.get('interval', 1)
        # None removes the entries: MMEngine's EMAHook has neither option.
        changes: ConfigDict = dict(warm_up=None, resume_from=None)
        if 'momentum' not in options or interval != 1:
            # mmcv raises the momentum to the power of the interval.
            changes['momentum'] = momentum**interval
        note = 'EMAHook: the averages are the state_dict of a checkpoint now'
        # mmcv used the smaller of momentum and (1 + iter) / (warm_up + iter).
        # The second term grows from 1 / warm_up, so that the warm-up had an
        # effect only on a larger momentum.
        if momentum > 1 / options.get('warm_up', 100):
            note += ', and its warm-up is left out (MomentumAnnealingEMA)'
        self.m.notes.changed.append((line, note))
        parts = all_parts(node)
        parts[index] = parts[index].with_changes(
            value=edit_dict(parts[index].value, changes)
        )
        return with_parts(node, parts)


def read_literals(node: cst.BaseExpression) -> ConfigDict:
    """Return the entries of a dict that are literals.

    A ``type`` that is no literal (a class) is returned as its source.
    """
    literals: ConfigDict = {}
    for key, value in (entries_of(node) or {}).items():
        try:
            literals[key] = eval_literal(value)
        except ValueError:
            if key == 'type':
                literals[key] = cst.Module([]).code_for_node(value)
    return literals


def eval_literal(node: cst.BaseExpression) -> ConfigValue:
    """Return the value of a literal.

    Raises:
        ValueError: If the expression is no literal.
    """
    return ast.literal_eval(cst.Module([]).code_for_node(node))
