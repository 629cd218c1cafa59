"""What ``lr_config`` and ``momentum_config`` become.

1.x sets the rate of an iteration from its number; MMEngine's schedulers each
multiply, in their order, what they find. Where the rule of 1.x has no floor
(min_lr), both give the same rates, the warm-up included, to the last digits.
"""

from typing import Any, List, Mapping, Optional

from .migration import Migration
from .policies import KEYS, POLICIES
from .policy import CannotMigrate, Loop, Policy, Schedule

__all__ = ['migrate_schedules']

# MMEngine leaves _delete_ where no base has the key.
ALWAYS = ('policy', 'by_epoch', '_delete_')
WARMUP = ('warmup', 'warmup_iters', 'warmup_ratio', 'warmup_by_epoch')


def migrate_schedules(m: Migration) -> None:
    if not {'lr_config', 'momentum_config'} & m.old:
        return
    made: List[Any] = []
    for name, of in (('lr_config', 'lr'), ('momentum_config', 'momentum')):
        config = m.cfg.get(name)
        if config is None:
            continue
        optimizer = m.cfg.get('optimizer') or {}
        if isinstance(m.cfg.get('optim_wrapper'), dict):
            optimizer = m.cfg['optim_wrapper'].get('optimizer', optimizer)
        base = optimizer.get(of, (optimizer.get('betas') or [None])[0])
        schedule = migrate_schedule(name, config, m.loop, base)
        for told in schedule.changed:
            m.changed(name, told)
        for told in schedule.left:
            m.left(name, told)
        if schedule.left:
            m.old.discard(name)
        elif name in m.old:
            m.done(name, f'{name} -> param_scheduler')
        made += schedule.schedulers
    if {'lr_config', 'momentum_config'} & m.old:
        m.new['param_scheduler'] = made


def migrate_schedule(
    name: str, config: Mapping[str, Any], loop: Loop, base: Optional[float]
) -> Schedule:
    """Read one of the two.

    Args:
        name: 'lr_config' or 'momentum_config'.
        config: Its value.
        loop: Of the run.
        base: What the optimizer begins with, if it is known.
    """
    policy = Policy(name, config, loop, base, Schedule())
    try:
        kind = kind_of(policy)
        unknown = sorted({*config} - {*ALWAYS, *WARMUP, *KEYS[kind]})
        if unknown:
            raise CannotMigrate(f'{", ".join(unknown)}: not a key of mmcv')
        policy.by_epoch = counts_epochs(policy, kind)
        policy.warm_up()
        POLICIES[kind](policy)
    except CannotMigrate as error:
        return Schedule(left=[f'{name}: {error}'])
    return policy.made


def kind_of(policy: Policy) -> str:
    kind = policy.config.get('policy')
    if kind is None:
        raise CannotMigrate(
            "it has no policy, and a parent's list of schedulers cannot be "
            'merged with: write the whole list'
        )
    if kind == kind.lower():
        kind = kind.title()  # as mmcv reads it
    if kind not in POLICIES:
        raise CannotMigrate(
            f'the policy {policy.config["policy"]!r} has no scheduler in '
            f'MMEngine; there are {", ".join(sorted(POLICIES))}'
        )
    return kind


def counts_epochs(policy: Policy, kind: str) -> bool:
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
