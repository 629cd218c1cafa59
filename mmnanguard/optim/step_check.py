"""The check of an optimizer's step, which can make NaN of finite gradients."""

import math
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.core import BadTensor, GuardConfigError, NanGuardError
from mmnanguard.numerics.base.host_read import read_once
from mmnanguard.numerics.base.norms import tensor_norms
from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.base.tensor_kinds import real_values
from mmnanguard.numerics.checkpoints.host_tensor import keep_tensor
from mmnanguard.numerics.checkpoints.optimizer_copy import OptimizerCopy
from mmnanguard.numerics.checkpoints.saved_optimizer import walk
from mmnanguard.numerics.update.agree import ranks_that
from mmnanguard.numerics.update.blame import MAX_BLAMED, TensorNames, describe

from .guard import Guard
from .step_settings import DTYPE, bad_numbers

__all__ = ['StepTrial', 'begin_trial', 'end_trial']

# Steps in a row that are undone for new states alone.
MOST_UNDONE = 2


class Kept(NamedTuple):
    """A weight or a tensor of the optimizer's state, after a step.

    Attributes:
        param: The parameter.
        key: The key in the state of the parameter; '' for the weight itself.
        values: The numbers.
        is_new: Whether the step has made the tensor.
    """

    param: Tensor
    key: str
    values: Tensor
    is_new: bool = False


class StepTrial:
    """A step whose result can be judged and undone.

    Made before the step. Weights and the whole optimizer are copied to the
    host.

    Args:
        optimizer: The optimizer.
        params: The tensors that it writes, but for its state.

    Attributes:
        bad_before: What was not finite before the step already, once
            ``find_bad`` has run.
    """

    def __init__(self, optimizer: Optimizer, params: List[Tensor]) -> None:
        self._optimizer = optimizer
        self.bad_before: List[Kept] = []
        self._params = params
        self._weights = list(map(keep_tensor, self._params))
        self._copy = OptimizerCopy(optimizer)
        self._bad_numbers = bad_numbers(optimizer)
        # What was not finite before is not the fault of this step.
        self._keys: List[Tuple[int, str]] = []
        self._extremes: List[Tensor] = []
        for kept in self._kept():
            self._keys.append(identity(kept))
            # NaN if an element is NaN. Unlike a norm it cannot overflow: sums
            # of squares are large.
            self._extremes += torch.aminmax(kept.values)

    def _kept(self) -> List[Kept]:
        """Return the weights and the tensors of the state at present."""
        kept = []
        for param in self._params:
            values: List[Tuple[str, Any]] = [('', param)]
            # get: the state is a defaultdict.
            values += walk(self._optimizer.state.get(param, {}))
            for key, value in values:
                if not isinstance(value, Tensor):
                    continue
                numbers = real_values(value)
                # Counters and the like say nothing about elements.
                if numbers is not None and (
                    value.dim() > 0 or value.shape == param.shape
                ):
                    kept.append(Kept(param, key, numbers))
        return kept

    def find_bad(self) -> List[Kept]:
        """Return what the step has made non-finite; syncs the device."""
        after = self._kept()
        read = read_once(
            {
                'before': self._extremes,
                'after': tensor_norms([kept.values for kept in after], 2.0),
            }
        )
        was_finite: Dict[Tuple[int, str], bool] = {}
        lows, highs = read['before'][::2], read['before'][1::2]
        for key, low, high in zip(self._keys, lows, highs):
            was_finite[key] = math.isfinite(low) and math.isfinite(high)
        bad = []
        for kept, norm in zip(after, read['after']):
            if not was_finite.get(identity(kept), True):
                self.bad_before.append(kept)
                continue
            if math.isfinite(norm):
                continue
            # Finite elements can have a norm of inf, and an optimizer may
            # begin a state with inf.
            is_new = identity(kept) not in was_finite
            if not is_design(kept.values, is_new):
                bad.append(kept._replace(is_new=is_new))
        return bad

    def made_settings(self) -> List[str]:
        """Return the settings that the step has made non-finite, in words."""
        now = bad_numbers(self._optimizer)
        return [words for words in now if words not in self._bad_numbers]

    def undo(self) -> None:
        """Make weights and optimizer as they were, bit for bit."""
        self._copy.restore(self._optimizer)
        for param, copy in zip(self._params, self._weights):
            if copy is not None:
                copy.restore(param)


def begin_trial(
    optimizer: Optimizer, params: List[Tensor]
) -> Optional[StepTrial]:
    """Copy all that a step changes; None if that cannot be copied.

    Args:
        optimizer: The optimizer.
        params: The tensors that it writes, but for its state.

    Raises:
        GuardConfigError: If it cannot, and weights are in float16.
    """
    # An optimizer may hold anything, and must not end the run by that.
    with suppress(Exception):
        return StepTrial(optimizer, params)
    for group in optimizer.param_groups:
        if torch.float16 in map(DTYPE, group['params']):
            raise GuardConfigError(
                f'{type(optimizer).__name__} cannot be copied, so that a step '
                'of weights in float16 cannot be undone. Train them in '
                'float32 or bfloat16.'
            )
    return None


def end_trial(
    guard: Guard, optimizer: Optimizer, trial: Optional[StepTrial]
) -> Tuple[Tuple[int, ...], Tuple[BadTensor, ...], Dict[str, List[str]]]:
    """Undo a step that has made NaN or Inf on any rank. Collective.

    The step stays if any rank could not copy what it changes.

    Returns:
        The ranks on which the step was bad, if it was undone; a few of the
        tensors that it had spoiled on this rank; and the evidence on why.
    """
    bad = [] if trial is None else trial.find_bad()
    if begins_again(bad, guard):
        bad = []
    try:
        without_copy, ranks = ranks_that(trial is None, bool(bad))
    except NanGuardError:
        # The error promises that nothing of the update was applied.
        if trial is not None:
            trial.undo()
        raise
    if trial is None or without_copy:
        guard.coverage_warnings.warn_once(
            'copy', optimizer=type(optimizer).__name__
        )
        return (), (), {}
    if not ranks:
        return (), (), {}
    names = guard.names()
    described = describe_bad(bad, names)
    evidence = {
        'bad_state': [
            name_of(kept, names)
            for kept in trial.bad_before
            if kept.key and not is_design(kept.values, is_new=True)
        ],
        'made_settings': trial.made_settings(),
        'zero_gradients': [name_of(kept, names) for kept in explained(bad)],
    }
    trial.undo()
    return ranks, described, evidence


def begins_again(bad: List[Kept], guard: Guard) -> bool:
    """Whether a step has begun states with NaN or -Inf for a third time.

    All weights are finite, and each new step begins the states like that, so
    that it is no fault of the gradients: the optimizer is made so.

    Args:
        bad: What the step has made non-finite.
        guard: The guard of the optimizer.
    """
    are_new = [kept.is_new and bool(kept.key) for kept in bad]
    begins = bool(are_new) and all(are_new)
    if guard.params.count_begun(begins) <= MOST_UNDONE:
        return False
    guard.coverage_warnings.warn_once(
        'begun', optimizer=type(guard.params.optimizer).__name__
    )
    return True


def explained(bad: List[Kept]) -> List[Kept]:
    """Return the weights that gradients of 0 explain; syncs.

    They explain none if a weight went bad whose gradient has no zeros.

    Args:
        bad: What a step has made non-finite.
    """
    weights = []
    for kept in bad:
        grad = kept.param.grad
        if kept.key or grad is None or grad.layout is not torch.strided:
            continue
        if not (local(grad) == 0).any():
            return []
        weights.append(kept)
    return weights


def identity(kept: Kept) -> Tuple[int, str]:
    """Return the key of a tensor in dictionaries."""
    return id(kept.param), kept.key


def is_design(values: Tensor, is_new: bool) -> bool:
    """Whether values with a non-finite norm are all right. Syncs the device.

    Args:
        values: The numbers.
        is_new: Whether the step has made the tensor.
    """
    if bool(values.isfinite().all()):
        return True
    return is_new and bool(values.isposinf().all())


def describe_bad(bad: List[Kept], names: TensorNames) -> Tuple[BadTensor, ...]:
    """Describe the first few tensors that a step has spoiled.

    Weights come before states. Syncs the device.
    """
    described = []
    for kept in sorted(bad, key=is_state)[:MAX_BLAMED]:
        kind = 'optimizer' if kept.key else 'weight'
        parts = [(names.of_param(kept.param), kept.values)]
        if kept.values.numel() == local(kept.param).numel():
            parts = names.split(kept.param, kept.values)
        for name, values in parts:
            name = f'{name} {kept.key}'.rstrip()
            described.append(describe(name, kind, values))
    # A part of a flat tensor may be sound.
    return tuple([tensor for tensor in described if tensor.count])


def name_of(kept: Kept, names: TensorNames) -> str:
    """Return the name of a weight, or of a tensor of the state."""
    return f'{names.of_param(kept.param)} {kept.key}'.rstrip()


def is_state(kept: Kept) -> bool:
    """Whether a kept tensor belongs to the optimizer's state."""
    return bool(kept.key)
