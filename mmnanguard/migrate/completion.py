"""Comparison of a new file with the value that its config has to have."""

from typing import Mapping, Optional, Tuple

from .config_value import ConfigDict, ConfigValue
from .differences import difference, is_writable, missing, opened, plain, same
from .guarded_types import is_guarded_type, short
from .migration import Migration
from .notes import Notes
from .place import ORDER
from .rewrite import Job, merged_form

__all__ = ['lacks']

# A phase that a config does without has None for these keys.
PHASES = (
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_cfg',
    'test_cfg',
)

# The default of MMEngine's CheckpointHook and LogProcessor.
EPOCHS = dict(by_epoch=True)
# Entries of a wrapper that mean the same as no entry; they reset what a base
# has.
UNSET = dict(
    accumulative_counts=1, constructor='DefaultOptimWrapperConstructor'
)


def lacks(
    job: Job, m: Migration, value: ConfigDict
) -> Tuple[ConfigDict, Notes]:
    """Return what a new file lacks of its value, and the notes on it."""
    whole = merged_form(job, job.alive)
    wanted = everything(whole)
    more: ConfigDict = {}
    for key in ORDER:
        if key in m.kept_back or key == 'custom_hooks':
            continue
        if key in job.set_below:
            continue
        if key in wanted:
            rest = compared(key, value, wanted[key])
            if rest is not None:
                (more[key],) = rest
        elif (
            key in PHASES
            and value.get(key) is not None
            and 'data' in whole.old
        ):
            more[key] = None
    add_waiting(job, m, value, more)
    follow_length(job, m, value, more)
    add_units(job, value, more)
    if trains(job, value):
        hooks = missing(
            value.get('default_hooks') or {}, m.guard['default_hooks']
        )
        if hooks:
            more['default_hooks'] = {**more.get('default_hooks', {}), **hooks}
    for key in list(more):
        if not is_writable(plain(more[key])):
            del more[key]
    return more, whole.notes


def add_waiting(
    job: Job, m: Migration, value: ConfigDict, more: ConfigDict
) -> None:
    """Add the keys of 1.x that a base leaves to this file."""
    waiting = job.alive & job.waiting
    if not waiting:
        return
    for key, want in everything(merged_form(job, waiting)).items():
        if key not in more and key not in m.kept_back:
            more.update(missing(value, {key: want}))
    have = value.get('optim_wrapper') or {}
    want = more.get('optim_wrapper', {})
    # fp16 of a part beside the optimizer's changes the type of its wrapper.
    if 'fp16' in waiting and 'optim_wrapper' not in job.file.names:
        half = merged_form(job, waiting).new.get('optim_wrapper', {})
        if half.get('type') != have.get('type'):
            more['optim_wrapper'] = {**half, **want}


def everything(m: Migration) -> ConfigDict:
    """Return the keys of 2.x that a migration makes."""
    made = dict(m.new)
    if m.hooks:
        made['default_hooks'] = m.hooks
    return made


def compared(
    key: str, value: Mapping[str, ConfigValue], want: ConfigValue
) -> Optional[Tuple[ConfigValue]]:
    """Return what the value of a key lacks; None if it lacks nothing."""
    if key not in value:
        return (want,)
    have = value[key]
    want = opened(want)
    if key == 'optim_wrapper' and isinstance(have, dict):
        # The limits of removed hooks are known to the file alone.
        want = {k: v for k, v in want.items() if k != 'guard'}
        have = {
            k: v for k, v in have.items() if k in want or not is_unset(k, v)
        }
    if key == 'log_processor':
        have = {**EPOCHS, **have}
    if key == 'default_hooks':
        # Other hooks may be there as well.
        have = {k: v for k, v in have.items() if k in want}
        if is_without_unit(want.get('checkpoint')) and have.get('checkpoint'):
            want = {**want, 'checkpoint': {**want['checkpoint'], **EPOCHS}}
            have = {**have, 'checkpoint': {**EPOCHS, **have['checkpoint']}}
    return difference(have, want)


def is_unset(key: str, value: ConfigValue) -> bool:
    """Whether an entry of a wrapper is as good as none."""
    return key == 'guard' or value in (None, UNSET.get(key))


def follow_length(
    job: Job, m: Migration, value: ConfigDict, more: ConfigDict
) -> None:
    """Add the schedule that a migrated base would have with this file."""
    key = 'param_scheduler'
    if (
        not (is_new_length(job) or 'lr_config' in m.source.tangled)
        or not value.get(key)
        or key in {*job.file.names, *more, *m.new, *m.kept_back}
        or key not in job.set_below
    ):
        return
    schedule = None
    if m.cfg.get('lr_config'):
        schedule = merged_form(job, {'lr_config'}).new.get(key)
    if schedule is None:
        m.left(
            (),
            'param_scheduler is inherited, and written for another '
            'length of training: write it for this one',
        )
    elif not same(plain(schedule), value[key]):
        more[key] = schedule


def is_new_length(job: Job) -> bool:
    """Whether a config changes the training loop of its bases."""
    old, new = job.base_loop, job.loop
    if old is None or old.total is None or new.total is None:
        return False
    return (old.by_epoch, old.total.value) != (new.by_epoch, new.total.value)


def trains(job: Job, value: Mapping[str, ConfigValue]) -> bool:
    """Whether one trains with a config, under a guard."""
    wrapper = value.get('optim_wrapper') or {}
    return (
        'default_hooks' not in job.withheld
        and 'model' in value
        and bool(job.file.bases)
        and is_guarded_type(short(wrapper.get('type')))
    )


def add_units(
    job: Job, value: Mapping[str, ConfigValue], more: ConfigDict
) -> None:
    """Add the unit of a loop of iterations, where a base knows no loop.

    MMEngine takes epochs for what does not say its unit.
    """
    if not job.loop.is_known or job.loop.by_epoch:
        return
    hooks = value.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint')
    if is_without_unit(checkpoint) and 'default_hooks' not in job.file.names:
        made = more.setdefault('default_hooks', {})
        made.setdefault('checkpoint', {}).setdefault('by_epoch', False)
    processor = value.get('log_processor')
    if is_without_unit(processor) and 'log_processor' not in job.file.names:
        more.setdefault('log_processor', {}).setdefault('by_epoch', False)


def is_without_unit(config: ConfigValue) -> bool:
    """Whether a config of a hook does not say what it counts."""
    return isinstance(config, dict) and 'by_epoch' not in config
