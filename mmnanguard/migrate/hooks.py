"""Migration of ``checkpoint_config`` and ``log_config``."""

from typing import Iterable, List, Mapping, Optional

from .config_value import ConfigDict, ConfigValue, select
from .guarded_types import short
from .loops import BEST
from .migration import Migration

__all__ = ['migrate_hooks']

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
