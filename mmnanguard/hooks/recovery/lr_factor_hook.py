"""The hook that trains on at other learning rates than a checkpoint has."""

import logging
from itertools import chain
from typing import Any, Dict, Iterator

from mmengine.runner import Runner
from torch import Tensor

from mmnanguard._console import say
from mmnanguard.core.checks import check_value, is_finite_number
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_schedulers, find_wrappers
from .._shared.hook_arguments import Checkpoint
from .._shared.roles import LrScaler

__all__ = ['LrFactorHook']

# The key of a checkpoint that holds the factor that its rates contain.
KEY = 'nanguard_lr_factor'
# The keys of a parameter group, and the attributes of a scheduler, that hold
# learning rates. PyTorch's schedulers start from 'initial_lr'.
GROUP_KEYS = ('lr', 'initial_lr', 'max_lr', 'min_lr')


@HOOKS.register_module()
class LrFactorHook(LrScaler):
    """Multiplies all learning rates of a run, also of one that is resumed.

    A resumed run takes its learning rates from the checkpoint: MMEngine loads
    the optimizer's parameter groups and the state of the schedulers, so that
    another ``optimizer.lr`` in the config has no effect. This hook multiplies
    the rates after they are loaded, in the groups (``lr``, ``initial_lr``)
    and in the schedulers, so that the whole schedule is scaled.

    The rates are those of the config times ``factor``, however often the run
    is resumed: a checkpoint notes the factor that its rates contain. Without
    the hook, a resumed run keeps the rates of the checkpoint.
    ``python -m mmnanguard train CONFIG --resume --lr-factor 0.1`` adds it.

    Args:
        factor: Factor on the learning rates, a finite number above 0.

    Raises:
        GuardConfigError: If the factor is not allowed.
    """

    # Before the hooks that read the rates, RuntimeInfoHook (VERY_HIGH) too.
    priority = 'VERY_HIGH'

    def __init__(self, factor: float) -> None:
        check_value(
            is_finite_number(factor) and factor > 0,
            'LrFactorHook.factor',
            factor,
            'a finite number above 0',
        )
        self.factor = float(factor)
        self._contained = 1.0

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Note the factor that the rates of the checkpoint contain."""
        # Weights alone, as of load_from, come without rates.
        if runner._resume:
            self._contained = checkpoint.get(KEY, 1.0)

    def before_train(self, runner: Runner) -> None:
        """Multiply all rates, once they are loaded."""
        factor = self.factor / self._contained
        self._contained = self.factor
        if factor == 1:
            return
        for wrapper in find_wrappers(runner).values():
            for group in wrapper.param_groups:
                scale_group(group, factor)
        for scheduler in schedulers_of(runner):
            scale_scheduler(scheduler, factor)
        say(
            f'mmnanguard: LrFactorHook multiplies all learning rates by '
            f'{factor:g}: they are {self.factor:g} times those of the config',
            logging.INFO,
            runner.logger,
        )

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Note the factor in the checkpoint."""
        checkpoint[KEY] = self._contained


def schedulers_of(runner: Runner) -> Iterator[Any]:
    """Yield the schedulers of learning rates of all optimizers."""
    for scheduler in chain.from_iterable(find_schedulers(runner).values()):
        # Others schedule the momentum or a weight decay.
        if getattr(scheduler, 'param_name', '') == 'lr':
            yield scheduler


def scale_scheduler(scheduler: Any, factor: float) -> None:
    """Multiply the rates that a scheduler of MMEngine keeps.

    All of them are in its state, which a resume loads.
    """
    for name in ('base_values', '_last_value', 'min_values'):
        rates = getattr(scheduler, name, None)
        # 'min_values' of ReduceOnPlateauLR only.
        if rates is not None:
            setattr(scheduler, name, [rate * factor for rate in rates])
    # The bound of cosines and polynomials. OneCycleLR uses the groups' own.
    bound: Any = getattr(scheduler, 'eta_min', None)
    if is_finite_number(bound):
        scheduler.eta_min = bound * factor


def scale_group(group: Dict[str, Any], factor: float) -> None:
    """Multiply the learning rates of a parameter group."""
    for key in GROUP_KEYS:
        value: Any = group.get(key)
        # A new tensor, because several groups may share one.
        if isinstance(value, Tensor) or is_finite_number(value):
            group[key] = value * factor
