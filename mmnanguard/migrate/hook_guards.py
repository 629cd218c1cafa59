"""The hooks of a config that are guards."""

from collections import Counter
from typing import Counter as Counts
from typing import Optional

from .config_value import ConfigValue
from .guarded_types import short
from .migration import Migration
from .nan_hooks import HOOKS, LATE_STOP, HandWritten
from .project_source import find_hook

__all__ = ['hand_of', 'report_others']

# The hooks of MMEngine that nearly every config has.
USUAL = (
    'None',
    'IterTimerHook',
    'LoggerHook',
    'ParamSchedulerHook',
    'CheckpointHook',
    'DistSamplerSeedHook',
    'RuntimeInfoHook',
    'SyncBuffersHook',
    'EMAHook',
)


def report_others(m: Migration, name: str, removed: Counts[str]) -> None:
    """Report the guards that are not written in this file as such.

    Args:
        m: The migration.
        name: ``custom_hooks`` or ``default_hooks``.
        removed: The number of removed guards of each type.
    """
    kinds = guards_of(m, m.cfg.get(name))
    kinds.subtract(removed)
    # In a tree the bases are migrated already.
    if m.new_bases:
        kinds.subtract(guards_of(m, m.inherited.get(name)))
        kinds.update(guards_of(m, m.new_bases.get(name)))
    for kind, number in kinds.items():
        if number > 0:
            m.left(
                name,
                f'{kind} is inherited or computed: remove it where it comes '
                'from, for the guard does its work',
            )


def guards_of(m: Migration, hooks: ConfigValue) -> Counts[str]:
    """Count the guards of each type among the hooks of a config's value."""
    kinds: Counts[str] = Counter()
    if isinstance(hooks, dict):
        hooks = list(hooks.values())
    for hook in hooks or []:
        kind = short(hook.get('type')) if isinstance(hook, dict) else ''
        if kind and hand_of(m, kind) is not None:
            kinds[kind] += 1
    return kinds


def hand_of(m: Migration, kind: str) -> Optional[HandWritten]:
    """Return what a hook is as a guard; None if it is none.

    A hook with an unknown name is judged by its source.
    """
    if kind in HOOKS or kind in USUAL:
        return HOOKS.get(kind)
    source = find_hook(m.path, m.cfg, kind)
    if source is not None and source.ends_run():
        return LATE_STOP
    return None
