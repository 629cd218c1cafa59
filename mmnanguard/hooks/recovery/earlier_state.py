"""States of a run that training can go back to."""

from typing import (
    Collection,
    Dict,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
)

from mmengine.dist import all_gather_object
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from mmnanguard.core import ClipRule, GuardState
from mmnanguard.numerics.base.comm_hooks import HookState, copy_hook_states
from mmnanguard.numerics.base.rng_state import RngState, read_rng
from mmnanguard.numerics.checkpoints.state_copy import Place, StateCopy
from mmnanguard.numerics.update.blame import plain_name

from .._shared.averages import ema_models
from .._shared.find_guards import find_guards, find_schedulers, find_wrappers

__all__ = [
    'AVERAGE',
    'EarlierState',
    'buffer_places',
    'count_steps',
    'optimizers_of',
    'present_state',
    'restore_together',
    'scheduled_keys',
    'tensors_of',
]

# The start of the names of the tensors of an average, by its number.
AVERAGE = 'average {}: '.format

# A guard's statistics and the memory of its clip rule. Both are frozen, so
# they are kept without a copy.
GuardRules = Tuple[GuardState, ClipRule]
Tensors = Mapping[str, Optional[Tensor]]
Optimizers = Mapping[str, Optimizer]


class Restorable(Protocol):
    """Tensors and optimizers that can be restored."""

    def restore(
        self,
        tensors: Tensors,
        optimizers: Optimizers,
        places: Optional[Mapping[str, Place]] = None,
    ) -> None:
        """Write them into the present state, or raise before any write."""


class EarlierState(NamedTuple):
    """A state that training can go back to.

    Attributes:
        iter: The last iteration that the state contains, from 1; 0 is the
            start of training.
        copy: Weights, buffers, averages and optimizers.
        rules: The state and clip rule of each guard, by optimizer.
        rng: The random state of this rank; None if it is not known.
        path: The checkpoint that the state was read from; '' for a state in
            memory.
        left_out: The names of tensors that could not be copied.
        hook_states: The states of DDP's communication hooks. A checkpoint
            has none; the present states then stay.
    """

    iter: int
    copy: Restorable
    rules: Mapping[str, GuardRules]
    rng: Optional[RngState] = None
    path: str = ''
    left_out: Sequence[str] = ()
    hook_states: Sequence[HookState] = ()

    @property
    def num_steps(self) -> int:
        """The number of commits of all guards before the state was kept."""
        return sum(state.num_steps for state, _ in self.rules.values())

    def restore(self, runner: Runner) -> None:
        """Restore weights, buffers, averages and optimizers, in place.

        The statistics of the guards and the random state are left to the
        caller.

        Raises:
            ValueError: If the state does not fit the run any more. Nothing
                was written then.
        """
        self.copy.restore(
            tensors_of(runner), optimizers_of(runner), buffer_places(runner)
        )
        for state in self.hook_states:
            state.restore()
        for guard in find_guards(runner).values():
            guard.note_replaced_state()


def present_state(runner: Runner, iteration: int) -> EarlierState:
    """Copy the current state of the run."""
    rules: Dict[str, GuardRules] = {}
    for name, guard in find_guards(runner).items():
        rules[name] = (guard.state, guard.clip_rule)
    copy = StateCopy.of(
        tensors_of(runner), optimizers_of(runner), scheduled_keys(runner)
    )
    return EarlierState(
        iteration,
        copy,
        rules,
        read_rng(),
        left_out=copy.left_out,
        hook_states=copy_hook_states(runner.model.modules()),
    )


def count_steps(runner: Runner) -> int:
    """Return the number of commits of all guards in the run."""
    return sum(guard.state.num_steps for guard in find_guards(runner).values())


def restore_together(
    runner: Runner, kept: EarlierState, before: EarlierState
) -> bool:
    """Restore a state on all ranks or on none; return whether it was.

    Collective.

    Args:
        runner: The runner of the training.
        kept: The state to restore.
        before: The present state, which comes back after a failure.
    """
    is_restored = True
    try:
        kept.restore(runner)
    except Exception:  # the user's optimizer may raise anything
        runner.logger.exception('mmnanguard: cannot restore a kept state')
        is_restored = False
    if all(all_gather_object(is_restored)):
        return True
    before.restore(runner)
    return False


def models_of(runner: Runner) -> Dict[str, nn.Module]:
    """Return the model and its averages by the prefix of their tensors."""
    models = {'': runner.model}
    for index, model in enumerate(ema_models(runner.hooks), 1):
        models[AVERAGE(index)] = model
    return models


def tensors_of(runner: Runner) -> Dict[str, Optional[Tensor]]:
    """Return weights, buffers and averages of a run by name.

    A buffer may be None. A lazy parameter has no values yet and is left out.
    """
    tensors: Dict[str, Optional[Tensor]] = {}
    for prefix, model in models_of(runner).items():
        for name, param in model.named_parameters():
            if not is_lazy(param):
                tensors[full_name(prefix, name)] = param
    for name, (owner, key) in buffer_places(runner).items():
        buffer = owner._buffers[key]
        if buffer is None or not is_lazy(buffer):
            tensors[name] = buffer
    return tensors


def buffer_places(runner: Runner) -> Dict[str, Place]:
    """Return the places of all buffers of a run by name."""
    places: Dict[str, Place] = {}
    for prefix, model in models_of(runner).items():
        for path, module in model.named_modules():
            for key in module._buffers:
                name = f'{path}.{key}' if path else key
                places[full_name(prefix, name)] = module, key
    return places


def full_name(prefix: str, name: str) -> str:
    """Return the name of a tensor of the model or of an average."""
    # An average keeps the prefix 'module.' of its names, as checkpoints do.
    return prefix + name if prefix else plain_name(name)


def optimizers_of(runner: Runner) -> Dict[str, Optimizer]:
    """Return the optimizers of a run by name."""
    optimizers = {}
    for name, wrapper in find_wrappers(runner).items():
        optimizers[name] = wrapper.optimizer
    return optimizers


def scheduled_keys(runner: Runner) -> Dict[str, Collection[str]]:
    """Return the keys of ``param_groups`` that MMEngine's schedulers own.

    By the name of the optimizer.
    """
    keys: Dict[str, Collection[str]] = {}
    for name, schedulers in find_schedulers(runner).items():
        owned: Set[str] = set()
        for scheduler in schedulers:
            # A scheduler of another base class most likely changes the rate.
            key = getattr(scheduler, 'param_name', 'lr')
            owned |= {key, f'initial_{key}'}
            # The momentum of Adam is the first of its betas.
            if getattr(scheduler, 'use_betas', False):
                owned.add('betas')
        keys[name] = owned
    return keys
