"""The schedulers of MMEngine for each policy of 1.x.

Each function adds the schedulers of a policy to ``policy.made`` and raises
:class:`CannotMigrate` if MMEngine has no counterpart.
"""

from typing import Callable, Dict, Tuple

from .policy import CannotMigrate, Policy

__all__ = ['KEYS', 'POLICIES']


def fixed(policy: Policy) -> None:
    """Add no scheduler: only a warm-up changes a fixed rate."""


def step(policy: Policy) -> None:
    """Add the scheduler of steps, of a fixed size or at milestones."""
    steps = policy.config.get('step')
    # The defaults of mmcv's Step updaters of the rate and of the momentum.
    default = 0.1
    if policy.kind == 'Momentum':
        default = 0.5
    gamma = policy.keep('gamma', default)
    floor = policy.config.get(f'min_{policy.word}')
    if floor is not None:
        # Steps of a fixed size never end: assume more than any training has.
        number = len(steps) if isinstance(steps, (list, tuple)) else 1000
        lowest = policy.config.get('gamma', default) ** number
        # A floor that is never reached can be left out. The test is 'not >='
        # and not '<', so that a NaN counts as reached.
        if policy.base is None or not policy.base * lowest >= floor:
            raise CannotMigrate(
                f'min_{policy.word} would be reached, and steps in MMEngine '
                'have no floor: leave out the steps after it'
            )
    if isinstance(steps, int):
        size = policy.keep('step', None)
        policy.add('Step', step_size=size, gamma=gamma, **policy.counts())
    else:
        policy.add(
            'MultiStep',
            milestones=policy.keep('step', None),
            gamma=gamma,
            **policy.counts(),
        )


def exponential(policy: Policy) -> None:
    """Add the scheduler of an exponential decay."""
    gamma = policy.keep('gamma', None)
    policy.add('Exponential', gamma=gamma, **policy.counts())


def poly(policy: Policy) -> None:
    """Add the scheduler of a polynomial decay to the floor."""
    policy.add(
        'Poly',
        power=policy.keep('power', 1.0),
        **policy.floor(),
        begin=0,
        end=policy.after_end(),
        **policy.clock(),
    )


def linear_annealing(policy: Policy) -> None:
    """Add the scheduler of a linear decay to the floor."""
    floor = policy.floor()
    if 'eta_min' in floor:
        # LinearLR knows ratios only; a polynomial of power 1 is linear too.
        end = policy.after_end()
        policy.add(
            'Poly', power=1.0, **floor, begin=0, end=end, **policy.clock()
        )
        return
    policy.add(
        'Linear',
        start_factor=1.0,
        end_factor=floor['eta_min_ratio'],
        begin=0,
        end=policy.after_end(),
        **policy.clock(),
    )


def cosine(policy: Policy) -> None:
    """Add the scheduler of a cosine decay over the whole training."""
    policy.add(
        'CosineAnnealing',
        T_max=policy.total(),
        **policy.floor(),
        begin=0,
        end=policy.total(),
        **policy.clock(),
    )


def flat_cosine(policy: Policy) -> None:
    """Add the scheduler of a cosine decay after a constant rate."""
    total = policy.total()
    begin = total.value * policy.config.get('start_percent', 0.75)
    # mmcv rounds to whole epochs or iterations. For a policy in
    # iterations in a loop of epochs, begin is a fraction of an epoch, which
    # MMEngine converts to iterations, so it is not rounded here.
    if policy.by_epoch or not policy.loop.by_epoch:
        begin = round(begin)
    policy.add(
        'CosineAnnealing',
        T_max=total.value - begin,
        **policy.floor(),
        begin=begin,
        end=total,
        **policy.clock(),
    )


def cosine_restart(policy: Policy) -> None:
    """Add the scheduler of cosine decays with restarts."""
    # The default of mmcv; MMEngine has the same.
    weights = policy.keep('restart_weights', [1])
    target = policy.ratio()
    if target:
        # 1.x weighs the distance to the floor, MMEngine the rate.
        weights = [
            target + weight * (1 - target)
            for weight in policy.config.get('restart_weights', [1])
        ]
    policy.add(
        'CosineRestart',
        periods=policy.keep('periods', None),
        restart_weights=weights,
        **policy.floor(),
        **policy.counts(),
    )


def cyclic(policy: Policy) -> None:
    """Add the schedulers of a cycle: a cosine up and one down, repeated."""
    config = policy.config
    high, low = target_ratios(policy)
    if config.get('anneal_strategy', 'cos') != 'cos' or config.get('warmup'):
        raise CannotMigrate(
            'a cycle that is linear, or under a warm-up, has no counterpart'
        )
    cycles = config.get('cyclic_times', 1)
    period = policy.total().value / cycles
    rise = period * config.get('step_ratio_up', 0.4)
    if not policy.loop.by_epoch:
        # mmcv truncates the period and the rise to whole iterations.
        period, rise = int(period), int(rise)
    elif int(period) != period or round(rise, 6) != int(round(rise, 6)):
        policy.made.changed.append(
            f'{policy.name}: the turning points of the cycle fall within an '
            'epoch, and may be an iteration off'
        )
    # MMEngine has no cyclic schedule. A CosineRestart with a single period is
    # a cosine between any two ratios, so each half of a cycle becomes one.
    for cycle in range(cycles):
        # mmcv shrinks the upper ratio's distance from 1 with each cycle.
        scale = config.get('gamma', 1) ** cycle
        top = 1 - scale + high * scale
        start = cycle * period
        for begin, length, first, last in (
            (start, rise, 1, top),
            (start + rise, period - rise, top, low),
        ):
            begin, length = tidy(begin), tidy(length)
            policy.add(
                'CosineRestart',
                periods=[length],
                restart_weights=[first],
                eta_min_ratio=last,
                begin=begin,
                end=tidy(begin + length),
                **policy.clock(),
            )


def target_ratios(policy: Policy) -> Tuple[float, float]:
    """Return the upper and the lower ratio of a cycle."""
    # The defaults of mmcv's CyclicLrUpdaterHook and CyclicMomentumUpdaterHook.
    default: Tuple[float, float] = (10, 1e-4)
    if policy.kind == 'Momentum':
        default = (0.85 / 0.95, 1)
    ratios = policy.config.get('target_ratio', default)
    if not isinstance(ratios, (list, tuple)):
        ratios = (ratios,)
    if len(ratios) != 2:
        # mmcv derives the lower ratio from the upper in this way.
        return ratios[0], ratios[0] / 1e5
    high, low = ratios
    return high, low


def tidy(count: float) -> float:
    """Return a count without rounding errors, an int if it is whole."""
    count = round(count, 9)
    if count == int(count):
        return int(count)
    return count


def one_cycle(policy: Policy) -> None:
    """Add the scheduler of a one-cycle schedule."""
    if policy.kind == 'Momentum':
        raise CannotMigrate('MMEngine has no one-cycle schedule of momentum')
    if policy.config.get('warmup'):
        raise CannotMigrate('a cycle under a warm-up has no counterpart')
    if isinstance(policy.config.get('max_lr'), dict):
        raise CannotMigrate('max_lr for several optimizers: write a dict')
    keys = ('pct_start', 'anneal_strategy', 'div_factor', 'final_div_factor')
    # Options that are not set are left out: MMEngine's defaults are equal to
    # mmcv's.
    options = {}
    for key in (*keys, 'three_phase'):
        if key in policy.config:
            options[key] = policy.keep(key, None)
    steps = policy.config.get('total_steps')
    if steps is None:
        total, clock = policy.total(), policy.clock()
    else:
        # mmcv counts total_steps in iterations, whatever the loop counts.
        total = policy.keep('total_steps', None)
        clock = dict(by_epoch=False)
    policy.add(
        'OneCycle',
        eta_max=policy.keep('max_lr', None),
        total_steps=total,
        **options,
        **clock,
    )


# The keys are mmcv's names of policies: the names of its hooks without
# 'LrUpdaterHook' or 'MomentumUpdaterHook' at the end.
POLICIES: Dict[str, Callable[[Policy], None]] = {
    'Fixed': fixed,
    'Step': step,
    'Exp': exponential,
    'Poly': poly,
    'LinearAnnealing': linear_annealing,
    'CosineAnnealing': cosine,
    'FlatCosineAnnealing': flat_cosine,
    'CosineRestart': cosine_restart,
    'Cyclic': cyclic,
    'OneCycle': one_cycle,
}
# The options for the smallest value, of the rate and of the momentum.
FLOORS = ('min_lr', 'min_lr_ratio', 'min_momentum', 'min_momentum_ratio')
# The options that mmcv knows for each policy.
KEYS: Dict[str, Tuple[str, ...]] = {
    'Fixed': (),
    'Step': ('step', 'gamma', 'min_lr', 'min_momentum'),
    'Exp': ('gamma',),
    'Poly': ('power', *FLOORS),
    'LinearAnnealing': FLOORS,
    'CosineAnnealing': FLOORS,
    'FlatCosineAnnealing': ('start_percent', *FLOORS),
    'CosineRestart': ('periods', 'restart_weights', *FLOORS),
    'Cyclic': (
        'target_ratio',
        'cyclic_times',
        'step_ratio_up',
        'anneal_strategy',
        'gamma',
    ),
    'OneCycle': (
        'max_lr',
        'total_steps',
        'pct_start',
        'anneal_strategy',
        'div_factor',
        'final_div_factor',
        'three_phase',
    ),
}
