"""Migration of the optimizer wrapper to a guarded one."""

from typing import Container, List, Mapping, Optional, Tuple

import libcst as cst

from mmnanguard.core.how_to_guard import (
    base_for,
    has_guarded_form,
    how_to_guard,
)

from .config_value import ConfigDict, ConfigValue
from .dict_source import entries_of
from .guarded_types import (
    AMP,
    DEEPSPEED,
    FULL,
    GUARDED_TYPES,
    is_guarded_type,
    short,
)
from .migration import Migration
from .nan_hooks import IN_A_ROW, WRAPPERS, guard_options, looks_alike
from .optimizer_config import SEVERAL, can_migrate, wrapper_of_old

__all__ = ['migrate_wrapper']

# Options that the guarded wrappers take. All other options are removed,
# because the wrapper would refuse them.
TAKEN = (
    'type',
    'optimizer',
    'accumulative_counts',
    'clip_grad',
    'guard',
    'constructor',
    'paramwise_cfg',
)
TAKEN_BY_AMP = ('loss_scale', 'dtype', 'use_fsdp')
# The constructor that reads no keys of its own; None stands for it too.
OWN_CONSTRUCTORS = (None, 'DefaultOptimWrapperConstructor')


def migrate_wrapper(m: Migration) -> None:
    """Guard the optimizer wrapper, and add the hooks of the guard."""
    keys = {'optimizer', 'optimizer_config', 'fp16'} & m.old
    # The key of mmediting, which has an optimizer for each part of a model.
    if 'optimizers' in m.source.assigned and not m.cfg.get('optim_wrapper'):
        m.left('optimizers', SEVERAL)
    if not can_migrate(m, keys):
        # The three keys become a single key: all of them stay, or none.
        m.old -= keys
        return
    if keys:
        m.new['optim_wrapper'] = wrapper_of_old(m)
    elif m.is_merged:
        return
    elif 'optim_wrapper' in m.source.assigned:
        from_new(m)
        if 'optim_wrapper' not in m.new:
            return
    elif not from_bases(m):
        return
    # The guard's hooks are added last: without a guarded wrapper they would
    # have no events to handle.
    for name, hook in m.guard.get('default_hooks', {}).items():
        m.hooks[name] = dict(hook)


def from_bases(m: Migration) -> bool:
    """Guard an inherited wrapper; return whether that was possible."""
    # In a tree the bases are guarded already.
    wrapper = {**m.cfg, **m.new_bases}.get('optim_wrapper')
    if 'optim_wrapper' in m.source.tangled:
        wrapper = m.cfg.get('optim_wrapper')
    # An inherited guard stays as it is, even if the user names another.
    if not wrapper or is_guarded_type(short(wrapper.get('type'))):
        return False
    kind = short(wrapper.get('type', 'OptimWrapper'))
    is_variable = m.is_variable('optim_wrapper')
    if (
        not (is_variable or 'optim_wrapper' in m.inherited)
        or 'optimizer' not in wrapper
        or kind not in GUARDED_TYPES
    ):
        advice = 'is inherited: guard it in the file that has it'
        if is_variable:
            advice = f'is changed here: set its type to {base_for([kind])}'
        m.left('optim_wrapper', f'optim_wrapper (type {kind}) {advice}')
        return False
    changes = guarded_form(m, kind, wrapper)
    if not changes:
        return False
    m.new['optim_wrapper'] = changes
    m.done((), f'the inherited {kind} -> {short(changes["type"])}')
    lost = [key for key in wrapper if key in TAKEN_BY_AMP]
    if lost and changes['type'] == FULL:
        m.left((), f'optim_wrapper: {FULL} refuses {", ".join(lost)}')
    return True


def from_new(m: Migration) -> None:
    """Guard a wrapper of 2.x that this file sets."""
    node = m.source.assigned['optim_wrapper']
    value = m.cfg['optim_wrapper']
    # None switches off the training of a base.
    if value is None:
        return
    changes = guarded(m, ('optim_wrapper',), value, node)
    if changes:
        m.new['optim_wrapper'] = changes


def guarded(
    m: Migration,
    path: Tuple[str, ...],
    value: Mapping[str, ConfigValue],
    node: Optional[cst.BaseExpression],
    is_custom: bool = False,
) -> ConfigDict:
    """Return the changes that guard a wrapper, or several in a dict.

    Args:
        m: The migration.
        path: The keys at which the wrapper stands.
        value: The value of the wrapper.
        node: The source of the wrapper, if it is in this file.
        is_custom: Whether a constructor of the user's reads a dict around it.
    """
    is_custom |= value.get('constructor') is not None and (
        short(value['constructor']) not in OWN_CONSTRUCTORS
    )
    entries = entries_of(node)
    if entries is None:
        kind = base_for([short(value.get('type'))])
        m.left(path, f'it is computed: set its type to {kind} by hand')
        return {}
    # A dict without an optimizer holds a wrapper for each of several
    # optimizers, or is a part whose optimizer another file sets. Such a part
    # stays as it is.
    if 'optimizer' not in value:
        changes: ConfigDict = {}
        for key, wrapper in value.items():
            if isinstance(wrapper, dict) and 'optimizer' in wrapper:
                inner = guarded(
                    m, (*path, key), wrapper, entries.get(key), is_custom
                )
                if inner:
                    changes[key] = inner
        return changes
    kind = short(value.get('type', 'OptimWrapper'))
    # A guard is replaced only by a guard that the user named.
    if is_guarded_type(kind) and not m.is_named:
        return {}
    if kind not in (*GUARDED_TYPES, *WRAPPERS):
        reason = 'is not known here'
        if looks_alike(kind):
            reason = 'looks like a guard of your own'
        advice = f'make it a subclass of {base_for([kind])}, or write that'
        if not has_guarded_form(kind):
            advice = how_to_guard([kind])
        m.left((*path, 'type'), f'{kind} {reason}: {advice}')
        return {}
    return swapped(m, path, kind, value, entries, is_custom)


def swapped(
    m: Migration,
    path: Tuple[str, ...],
    kind: str,
    value: Mapping[str, ConfigValue],
    entries: Mapping[str, cst.BaseExpression],
    is_custom: bool,
) -> ConfigDict:
    """Return the changes that make a known wrapper a guarded one."""
    hand = WRAPPERS.get(kind)
    changes = guarded_form(m, kind, value)
    if not changes:
        return {}
    options: ConfigDict = {}
    why = ''
    if hand:
        options = guard_options(hand, value)
        why = f': {hand.why}'
    if options:
        # An overlay that the user chose has priority over the old class.
        changes['guard'] = {**options, **changes.get('guard', {})}
    new = short(changes['type'])
    taken = [*TAKEN]
    if changes['type'] == AMP:
        taken += TAKEN_BY_AMP
    # bfloat16 has the range of float32: the guarded wrapper would only warn
    # that the loss scale has no effect.
    if changes.get('dtype') == 'bfloat16':
        taken.remove('loss_scale')
    # A constructor of the user's takes its own keys out of the wrapper. Keys
    # of a class that is replaced cannot be told from them.
    if is_custom and hand is None:
        taken += {*entries} - {*TAKEN_BY_AMP}
    dropped: List[str] = [key for key in entries if key not in taken]
    # None removes an entry.
    changes.update(dict.fromkeys(dropped))
    changes = real_changes(changes, value, entries)
    if changes:
        m.done((*path, 'type'), f'{kind} -> {new}{why}')
    # The limit is not lost: the guard's options have it, as its own note says.
    if hand and hand.limit in dropped:
        dropped.remove(hand.limit)
    if dropped:
        m.changed(path, f'{new} does without {", ".join(dropped)}')
    if hand and hand.limit in value:
        m.changed(
            (*path, hand.limit),
            f'{hand.limit}={value[hand.limit]} -> {options}: {IN_A_ROW}',
        )
    return changes


def guarded_form(
    m: Migration, kind: str, value: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Return the guarded type of a wrapper, with the guard's own options.

    Args:
        m: The migration.
        kind: The bare name of the wrapper's type.
        value: The value of the wrapper.

    Returns:
        The changed keys; empty, with a note, if there is no such guard.
    """
    if m.is_named and GUARDED_TYPES.get(kind) == DEEPSPEED:
        m.left(
            'optim_wrapper',
            'a guard by name changes the strategy of DeepSpeed too: give '
            '--guard to tools/train.py instead',
        )
        return {}
    if m.is_named:
        return dict(m.guard['optim_wrapper'])
    # The guard's overlay follows the precision of the whole config, but only
    # some of several wrappers may be in half precision.
    hand = WRAPPERS.get(kind)
    guarded_type = GUARDED_TYPES.get(kind, FULL)
    if hand and hand.is_amp:
        guarded_type = AMP
    if guarded_type != AMP:
        return dict(type=guarded_type)
    # Without a dtype, autocast on a CPU would take bfloat16.
    return dict(type=AMP, dtype=value.get('dtype', 'float16'))


def real_changes(
    changes: ConfigDict,
    value: Mapping[str, ConfigValue],
    entries: Container[str],
) -> ConfigDict:
    """Return the changes that alter the source of a wrapper.

    Args:
        changes: The new value of each key.
        value: The value of the wrapper, with inherited entries.
        entries: The keys that the source has.
    """
    real: ConfigDict = {}
    for key, new in changes.items():
        # An edit for an equal value would only disturb the user's formatting.
        if key not in entries or new != value.get(key):
            real[key] = new
    return real
