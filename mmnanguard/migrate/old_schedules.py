"""The ``lr_config`` of 1.x that stands behind a list of schedulers.

A config may change a part of the schedule that it inherits, or the length of
training alone. If its base is migrated already, the list of schedulers does
not show what they follow, and a list cannot be merged.
"""

from typing import List, Optional, Sequence

from .config_value import ConfigDict, ConfigValue, select
from .differences import plain, same
from .policy import Loop
from .schedules import migrate_schedule

__all__ = ['lr_config_of']

# The policy of each scheduler, and the names of its options in 1.x.
POLICIES = {
    'MultiStepLR': ('step', {'milestones': 'step', 'gamma': 'gamma'}),
    'StepLR': ('step', {'step_size': 'step', 'gamma': 'gamma'}),
    'ExponentialLR': ('Exp', {'gamma': 'gamma'}),
    'PolyLR': ('poly', {'power': 'power'}),
    'LinearLR': ('LinearAnnealing', {'end_factor': 'min_lr_ratio'}),
    'CosineAnnealingLR': ('CosineAnnealing', {}),
    'CosineRestartLR': (
        'CosineRestart',
        {'periods': 'periods', 'restart_weights': 'restart_weights'},
    ),
}
FLOORS = {'eta_min': 'min_lr', 'eta_min_ratio': 'min_lr_ratio'}


def lr_config_of(
    schedulers: Sequence[ConfigDict], loop: Loop
) -> Optional[ConfigDict]:
    """Return the config of 1.x that becomes these schedulers.

    Args:
        schedulers: The schedulers of a config of 2.x.
        loop: The training loop of that config.

    Returns:
        The config; None if none is found that becomes exactly these.
    """
    rest: List[ConfigDict] = list(schedulers)
    config: ConfigDict = {}
    if rest and 'end' in rest[0] and 'end_factor' not in rest[0]:
        config = warm_up_of(rest[0])
        if config:
            rest.pop(0)
    if not rest:
        config['policy'] = 'fixed'
    elif len(rest) == 1 and rest[0].get('type') in POLICIES:
        main = rest[0]
        config['policy'], names = POLICIES[main['type']]
        for new, old in {**names, **FLOORS}.items():
            if new in main:
                config[old] = main[new]
        config['by_epoch'] = (
            main.get('by_epoch', True) and 'convert_to_iter_based' not in main
        )
        if config['policy'] == 'CosineAnnealing' and main.get('begin'):
            config['policy'] = 'FlatCosineAnnealing'
            config['start_percent'] = main['begin'] / main['end']
    else:
        return None
    # Whatever was guessed wrongly shows here.
    again = migrate_schedule('lr_config', config, loop, None)
    if again.left or not same(plain(again.schedulers), list(schedulers)):
        return None
    return config


def warm_up_of(scheduler: ConfigDict) -> ConfigDict:
    """Return the options of 1.x for a warm-up; empty if it is none."""
    kinds = {'LinearLR': 'linear', 'ConstantLR': 'constant'}
    kind = kinds.get(scheduler.get('type', ''))
    ratio: List[ConfigValue] = list(
        select(scheduler, ('start_factor', 'factor')).values()
    )
    if kind is None or not ratio:
        return {}
    if scheduler.get('by_epoch', True):
        length = dict(warmup_by_epoch=True, warmup_iters=scheduler['end'])
    else:
        length = dict(warmup_iters=scheduler['end'] - 1)
    return dict(warmup=kind, warmup_ratio=ratio[0], **length)
