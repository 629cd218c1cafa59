"""Migration of ``optimizer``, ``optimizer_config`` and ``fp16``."""

from typing import Collection, List, Mapping, Optional, Tuple

from mmnanguard.core.how_to_guard import base_for

from .config_value import ConfigDict, ConfigValue, select
from .guarded_types import is_half, short
from .migration import KeyPath, Migration
from .nan_hooks import (
    FAIL_FAST,
    FIRST,
    IN_A_ROW,
    SKIPS,
    WRAPPERS,
    HandWritten,
    guard_options,
)
from .project_source import find_hook

__all__ = ['SEVERAL', 'can_migrate', 'wrapper_of_old']

# Options of optimizer_config that are migrated.
KNOWN = (
    'type',
    'grad_clip',
    'cumulative_iters',
    'update_interval',
    'use_fp16',
    'loss_scale',
    'detect_anomalous_params',
)
# Options of mmcv's optimizer hooks that MMEngine does not need.
DROPPED = ('coalesce', 'bucket_size_mb', 'distributed', 'log_interval')
# The optimizer hooks of mmcv itself, which MMEngine's wrappers replace.
PLAIN = (
    'OptimizerHook',
    'DistOptimizerHook',
    'Fp16OptimizerHook',
    'GradientCumulativeOptimizerHook',
    'GradientCumulativeFp16OptimizerHook',
)
# The note on a config with several optimizers.
SEVERAL = (
    'several optimizers: MMEngine takes a wrapper for each and a constructor '
    'of your own; write those, then run this again'
)
# The keys of 1.x that become optim_wrapper, in the order in which a note
# lists them.
OLD_KEYS = ('optimizer', 'optimizer_config', 'fp16')
# Options of optimizer_config that have another name in 2.x.
MOVED = {
    'grad_clip': 'clip_grad',
    'cumulative_iters': 'accumulative_counts',
    'update_interval': 'accumulative_counts',
    'paramwise_options': 'paramwise_cfg',
}
# The options for the batches of an update: of mmcv, and of the hook that
# projects have for apex.
COUNTS = ('cumulative_iters', 'update_interval')
# Options of mmcv's LossScaler, which torch's GradScaler does not know.
LOSS_SCALER = ('mode', 'scale_factor', 'scale_window')


def can_migrate(m: Migration, keys: Collection[str]) -> bool:
    """Whether the keys can be migrated; reports the reason if not."""
    if has_several_optimizers(m.cfg.get('optimizer')):
        m.left('optimizer', SEVERAL)
        return False
    if 'optimizer' in keys and m.cfg['optimizer'] is None:
        m.left('optimizer', 'optimizer is None: there is nothing to guard')
        return False
    kind = short((m.cfg.get('optimizer_config') or {}).get('type', PLAIN[0]))
    if (
        'optimizer_config' in keys
        and kind not in PLAIN
        and hand_of(m, kind) is None
    ):
        base = base_for([kind], is_half(m.cfg, m.old))
        m.left(
            'optimizer_config',
            f'{kind} is a class of your own, so {", ".join(sorted(keys))} '
            'stay: what it does between backward and step belongs into a '
            f'subclass of {base}',
        )
        return False
    # A merge with the base's AmpOptimWrapper would keep its dtype and scale.
    if 'fp16' in keys and m.cfg['fp16'] is None and m.inherited.get('fp16'):
        m.left(
            'fp16',
            'None switches off what the base switches on: write '
            'optim_wrapper with _delete_=True',
        )
        return False
    return True


def has_several_optimizers(optimizer: ConfigValue) -> bool:
    """Whether a config is a dict of optimizers by name."""
    return (
        isinstance(optimizer, dict)
        and 'type' not in optimizer
        and any(
            isinstance(config, dict) and 'type' in config
            for config in optimizer.values()
        )
    )


def wrapper_of_old(m: Migration) -> ConfigDict:
    """Return the guarded ``optim_wrapper`` for the keys of 1.x."""
    config = m.set_here('optimizer_config')
    overlay = m.guard['optim_wrapper']
    # type and dtype are set here so that they stand first in the new file. The
    # whole overlay is merged below, over the options of 1.x.
    wrapper = select(overlay, ('type', 'dtype'))
    if {'fp16', 'optimizer_config'} & m.old and is_half(m.cfg, m.old):
        wrapper.update(loss_scale(m, wrapper))
    counts = [key for key in COUNTS if key in config]
    # The hook for apex names 1, its default, in most configs.
    if (
        counts == ['update_interval']
        and config['update_interval'] == 1
        and not is_inherited(m, 'optimizer_config', 'update_interval')
    ):
        counts = []
    if counts:
        path = ('optimizer_config', counts[0])
        wrapper['accumulative_counts'] = m.keep(*path)
        units = ''
        if not m.loop.by_epoch:
            units = 'both count batches, not updates, so max_iters stays; '
        m.changed(
            path,
            f'{units}a window is one update, and one bad batch rejects it '
            "(guard.accumulation='microbatch' leaves out that batch)",
        )
    # The default is written out, because a merge would keep the base's value.
    elif any(is_deleted(m, 'optimizer_config', key) for key in COUNTS):
        wrapper['accumulative_counts'] = 1
    wrapper.update(clip(m, config))
    wrapper.update(optimizer(m))
    # An overlay that the user chose has priority over the old class.
    guard = {**hand_written(m, config), **overlay.get('guard', {})}
    wrapper.update(overlay)
    if guard:
        wrapper['guard'] = guard
    unknown = sorted({*config} - {*KNOWN, *DROPPED, *limit_of(m, config)})
    if unknown:
        m.left('optimizer_config', f'{", ".join(unknown)}: not migrated')
    dropped = [key for key in config if key in DROPPED]
    if dropped:
        m.done('optimizer_config', f'{", ".join(dropped)}: no longer needed')
    keys = [key for key in OLD_KEYS if key in m.old]
    m.done(keys[0], f'{", ".join(keys)} -> optim_wrapper, guarded')
    return wrapper


def loss_scale(m: Migration, wrapper: Mapping[str, ConfigValue]) -> ConfigDict:
    """Return the wrapper's ``loss_scale``, or an empty dict.

    A fixed scale of mmcv becomes the initial and largest scale.
    """
    fp16 = m.cfg.get('fp16') or {}
    config = m.cfg.get('optimizer_config') or {}
    path: Tuple[str, ...] = ()
    if 'loss_scale' in fp16:
        path = ('fp16', 'loss_scale')
    elif 'loss_scale' in config:
        path = ('optimizer_config', 'loss_scale')
    if wrapper.get('dtype') != 'float16':
        m.changed(
            path or 'fp16',
            'the guard is not of float16: its loss scale is left out',
        )
        return {}
    # The default of mmcv's Fp16OptimizerHook.
    scale: ConfigValue = 512.0
    value, default = scale, " (mmcv's default)"
    where: KeyPath = 'optimizer_config'
    if path:
        scale = m.keep(*path)
        value, default, where = scale.value, '', path
    elif config.get('use_fp16'):
        m.changed(
            ('optimizer_config', 'use_fp16'),
            "apex's O1 becomes autocast, with a dynamic loss scale as before",
        )
        return {}
    elif 'fp16' in m.old:
        where = 'fp16'
    if isinstance(value, (int, float)):
        m.changed(
            where,
            f'a loss scale of {value:g}{default} was fixed; now it is '
            'where the scale starts and the most it can be, and it comes '
            'down on overflow',
        )
    elif isinstance(value, dict) and {*value} & {*LOSS_SCALER}:
        m.left(
            where,
            f"{', '.join(LOSS_SCALER)} are of mmcv's own scaler for "
            "torch < 1.6; loss_scale is 'dynamic' now",
        )
        return {}
    return dict(loss_scale=scale)


def clip(m: Migration, config: Mapping[str, ConfigValue]) -> ConfigDict:
    """Return the wrapper's ``clip_grad``, or an empty dict."""
    if config.get('grad_clip') is not None:
        return dict(clip_grad=whole(m, 'optimizer_config', 'grad_clip'))
    # None switches off the clipping of a base; it is not written if no base
    # clips.
    is_off = 'grad_clip' in config and is_inherited(
        m, 'optimizer_config', 'grad_clip'
    )
    if is_off or is_deleted(m, 'optimizer_config', 'grad_clip'):
        return dict(clip_grad=None)
    return {}


def is_inherited(m: Migration, name: str, key: str) -> bool:
    """Whether the bases' wrapper, migrated or not, has a key of 1.x."""
    wrapper = m.inherited.get('optim_wrapper') or {}
    old = m.inherited.get(name) or {}
    return bool(old.get(key) or wrapper.get(MOVED.get(key, key)))


def is_deleted(m: Migration, name: str, key: str) -> bool:
    """Whether ``_delete_`` removed an inherited key.

    The new wrapper is merged with the bases', so the key has to be reset.
    """
    return (
        m.replaces(name)
        and key not in m.set_here(name)
        and is_inherited(m, name, key)
    )


def whole(m: Migration, name: str, key: str) -> ConfigValue:
    """Return the dict at a key, with ``_delete_`` if its parent has that."""
    if not (m.replaces(name) and is_inherited(m, name, key)):
        return m.keep(name, key)
    entries: ConfigDict = dict(_delete_=True)
    for inner in m.cfg[name][key]:
        entries[inner] = m.keep(name, key, inner)
    return entries


def hand_written(
    m: Migration, config: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Return the guard's options that replace a hand-written hook."""
    kind = short(config.get('type', PLAIN[0]))
    hand = hand_of(m, kind)
    if hand is None:
        return {}
    if kind not in WRAPPERS:
        base = base_for([kind], is_half(m.cfg, m.old))
        m.left(
            ('optimizer_config', 'type'),
            f'{kind}: only its check was read; what else it does between '
            f'backward and step belongs into a subclass of {base}',
        )
    m.done(('optimizer_config', 'type'), f'{kind} -> the guard: {hand.why}')
    options = guard_options(hand, config)
    if hand.limit in config:
        m.changed(
            ('optimizer_config', hand.limit),
            f'{hand.limit}={config[hand.limit]} -> {options}: {IN_A_ROW}',
        )
    return options


def hand_of(m: Migration, kind: str) -> Optional[HandWritten]:
    """Return what an optimizer hook is as a guard; None if it is none.

    A hook with an unknown name is judged by its source.
    """
    if kind in PLAIN or kind in WRAPPERS:
        return WRAPPERS.get(kind)
    source = find_hook(m.path, m.cfg, kind)
    if source is not None and source.leaves_out_steps():
        return HandWritten(SKIPS)
    if source is not None and source.ends_run():
        return HandWritten(FAIL_FAST, guard=FIRST)
    return None


def limit_of(m: Migration, config: Mapping[str, ConfigValue]) -> List[str]:
    """Return the name of a hand-written hook's limit; empty if unknown."""
    hand = hand_of(m, short(config.get('type')))
    if hand is None:
        return []
    return [hand.limit]


def optimizer(m: Migration) -> ConfigDict:
    """Return the keys of the wrapper that ``optimizer`` becomes."""
    config = m.set_here('optimizer')
    if not config:
        return {}
    # In 2.x constructor and paramwise_cfg are keys of the wrapper.
    without = ['constructor', 'paramwise_cfg', 'paramwise_options']
    made: ConfigDict = {}
    if set(config) - set(without):
        made['optimizer'] = m.keep('optimizer', without=without)
    if 'constructor' in config:
        made['constructor'] = m.keep('optimizer', 'constructor')
    elif is_deleted(m, 'optimizer', 'constructor'):
        made['constructor'] = 'DefaultOptimWrapperConstructor'
    rules = 'paramwise_cfg'
    # The name that mmdet 1.x had for it.
    if 'paramwise_options' in config:
        rules = 'paramwise_options'
    if config.get(rules) is not None:
        made['paramwise_cfg'] = whole(m, 'optimizer', rules)
    elif is_deleted(m, 'optimizer', 'paramwise_cfg'):
        made['paramwise_cfg'] = None
    constructor = config.get('constructor')
    if constructor in ('DefaultOptimizerConstructor', None):
        # MMEngine's default does what mmcv's default did, so none is written.
        if constructor:
            made.pop('constructor')
    else:
        m.left(
            ('optimizer', 'constructor'),
            f'{constructor}: in 2.x a constructor builds the wrapper and is '
            'registered in OPTIM_WRAPPER_CONSTRUCTORS',
        )
    return made
