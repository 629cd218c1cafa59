"""Migration of ``lr_config`` and ``momentum_config``.

1.x computes the rate of an iteration from its number; MMEngine's schedulers
multiply the current rate, one after another. Both give equal rates except for
rounding, unless a note of the migration names a difference: a floor
(``min_lr``) under a warm-up, or an end that moves by one iteration.
"""

from typing import List, Mapping, Optional

from .config_value import ConfigValue
from .migration import Migration
from .policies import KEYS, POLICIES
from .policy import CannotMigrate, Loop, Policy, Schedule

__all__ = ['migrate_schedules']

# Options that all policies have. _delete_ is among them because MMEngine
# leaves it in a dict that has no base.
ALWAYS = ('policy', 'by_epoch', '_delete_')
WARMUP = ('warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch')


def migrate_schedules(m: Migration) -> None:
    """Turn ``lr_config`` and ``momentum_config`` into ``param_scheduler``."""
    if not {'lr_config', 'momentum_config'} & m.old:
        return
    made: List[ConfigValue] = []
    for name, option in (('lr_config', 'lr'), ('momentum_config', 'momentum')):
        config = m.cfg.get(name)
        if config is None:
            continue
        # The optimizer may be in an optim_wrapper already, here or in a base.
        optimizer = m.cfg.get('optimizer') or {}
        if isinstance(m.cfg.get('optim_wrapper'), dict):
            optimizer = m.cfg['optim_wrapper'].get('optimizer') or optimizer
        base = optimizer.get(option)
        # Adam's momentum is its first beta.
        if option == 'momentum' and optimizer.get('betas'):
            base = optimizer['betas'][0]
        schedule = migrate_schedule(name, config, m.loop, base)
        for note in schedule.changed:
            m.changed(name, note)
        for note in schedule.left:
            m.left(name, note)
        if schedule.left:
            m.old.discard(name)
        elif name in m.old:
            m.done(name, f'{name} -> param_scheduler')
        made += schedule.schedulers
    # The list holds the schedulers of both keys, inherited or not: MMEngine
    # replaces a base's list and cannot merge it.
    if {'lr_config', 'momentum_config'} & m.old:
        m.new['param_scheduler'] = made


def migrate_schedule(
    name: str,
    config: Mapping[str, ConfigValue],
    loop: Loop,
    base: Optional[float],
) -> Schedule:
    """Turn ``lr_config`` or ``momentum_config`` into schedulers.

    Args:
        name: 'lr_config' or 'momentum_config'.
        config: The value of that key.
        loop: The training loop.
        base: The optimizer's learning rate or momentum, if it is known.
    """
    policy = Policy(name, config, loop, base, Schedule())
    try:
        kind = kind_of(policy)
        unknown = sorted({*config} - {*ALWAYS, *WARMUP, *KEYS[kind]})
        if unknown:
            raise CannotMigrate(f'{", ".join(unknown)}: not a key of mmcv')
        policy.by_epoch = counts_epochs(policy, kind)
        # The warm-up comes first, as in the configs of the mm projects.
        policy.warm_up()
        POLICIES[kind](policy)
    except CannotMigrate as error:
        return Schedule(left=[f'{name}: {error}'])
    return policy.made


def kind_of(policy: Policy) -> str:
    """Return the name of a policy in the spelling of :data:`POLICIES`.

    Raises:
        CannotMigrate: If the policy has no name, or an unknown name.
    """
    kind: Optional[str] = policy.config.get('policy')
    if kind is None:
        raise CannotMigrate(
            "it has no policy, and a parent's list of schedulers cannot be "
            'merged with: write the whole list'
        )
    # mmcv reads 'step' as 'Step' as well.
    if kind == kind.lower():
        kind = kind.title()
    if kind not in POLICIES:
        raise CannotMigrate(
            f'the policy {policy.config["policy"]!r} has no scheduler in '
            'MMEngine: write param_scheduler'
        )
    return kind


def counts_epochs(policy: Policy, kind: str) -> bool:
    """Whether 1.x counts a policy in epochs.

    Raises:
        CannotMigrate: If the policy counts epochs in a loop of iterations.
    """
    # mmcv's IterBasedRunner sets by_epoch=False in lr_config, but not in
    # momentum_config. The one-cycle and cyclic updaters default to False.
    default = policy.loop.by_epoch or policy.kind == 'Momentum'
    if kind in ('OneCycle', 'Cyclic'):
        default = False
    by_epoch = bool(policy.config.get('by_epoch', default))
    if by_epoch and not policy.loop.by_epoch and kind != 'Fixed':
        raise CannotMigrate(
            'by_epoch=True counts passes over the data, which a loop of '
            'iterations does not: write the schedule in iterations'
        )
    return by_epoch
