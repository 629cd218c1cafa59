"""The parameters and gradients of an optimizer."""

import math
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)
from weakref import WeakSet

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from mmnanguard.core.step_advice import uphill_settings
from mmnanguard.numerics.base.host_read import read_once
from mmnanguard.numerics.base.norms import tensor_norms
from mmnanguard.numerics.base.shards import Placement, Shards, local
from mmnanguard.numerics.base.tensor_kinds import stored_values
from mmnanguard.numerics.update.apply import apply_update
from mmnanguard.numerics.update.blame import Slice

from .refusals import check_dtype, check_groups, refuse_closure, refuse_kind
from .step_settings import (
    CHECKED,
    SPOILING,
    as_list,
    can_spoil,
    describe,
    is_on_device,
    is_risky,
)

__all__ = ['GuardedParams']

# These run in C, which matters for thousands of gradients.
GRAD, DTYPE, LAYOUT = map(attrgetter, ('grad', 'dtype', 'layout'))
PARAMS = itemgetter('params')
NUMBERS = {float, int}
# Types with the range of float32, whose steps are safe.
PLAIN = {torch.float32, torch.bfloat16}

# All live instances, to find the parameters of other optimizers. Instances of
# deleted wrappers drop out of a weak set.
_ALIVE: 'WeakSet[GuardedParams]' = WeakSet()


class GuardedParams:
    """The parameters of an optimizer, and their gradients.

    Args:
        optimizer: The optimizer.
        is_checked: Whether the result of each step is checked.

    Attributes:
        last_iter: The iteration of the last commit whose step may have
            spoiled weights.
        is_risky: Whether an argument of the optimizer is known to make NaN now
            and then.
        has_spoiled: Whether a step of this run has spoiled weights, so that
            each further one is checked.
        run: The model of the run, once it is known. Optimizers of another
            run in this process are none of this run's business.
        has_refused: Whether the engine that makes the step has just refused
            to; equal on all ranks.
        are_bound: Whether training may begin. An engine that is built steps
            once on gradients of 0.
        engine_clip: The norm to which DeepSpeed clips by itself; 0 if it
            does not.

    Raises:
        GuardConfigError: If its updates cannot be guarded.
    """

    has_refused = False
    are_bound = True
    engine_clip = 0.0
    # As it is, because a method would be one call more in each update.
    apply_update = staticmethod(apply_update)

    def __init__(self, optimizer: Optimizer, is_checked: bool = False) -> None:
        check_groups(optimizer)
        self.is_checked = is_checked
        self._num_begun = 0
        self.use(optimizer)
        self.run: Optional[nn.Module] = None
        # MMEngine makes a hub for each runner.
        self._hub = MessageHub.get_current_instance()
        _ALIVE.add(self)
        if isinstance(optimizer, LBFGS):
            refuse_closure(type(optimizer).__name__)
        self.check_kinds()

    def check_kinds(self) -> None:
        """Refuse parameters that cannot be guarded."""
        for param in self:
            if param.requires_grad:
                check_dtype(param, self.is_checked)
                if param.is_nested:
                    refuse_kind('a nested parameter')

    def use(self, optimizer: Optimizer) -> None:
        """Replace the optimizer."""
        self.optimizer = optimizer
        self._has_parts = any(map(is_part, self))
        self._shards: Optional[Shards] = None
        self._can_spoil = can_spoil(optimizer)
        self.is_risky = is_risky(optimizer)
        self._settings = list(map(self.groups[0].get, SPOILING))
        self.has_spoiled = False
        self.forget_steps()

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(map(PARAMS, self.groups))

    @property
    def groups(self) -> List[Dict[str, Any]]:
        """The optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def can_spoil(self) -> bool:
        """Whether a step may make NaN or Inf of finite gradients."""
        # A schedule or hook that changes an argument changes it in all groups.
        settings = list(map(self.groups[0].get, SPOILING))
        # Not by value, because comparing tensors may sync a device.
        if not all(map(is_, settings, self._settings)):
            self._settings = settings
            self._can_spoil = can_spoil(self.optimizer)
            self.is_risky = is_risky(self.optimizer)
        attributes = vars(self.optimizer)
        return bool(
            self._can_spoil
            or attributes.get('_optimizer_step_pre_hooks')
            or attributes.get('_optimizer_step_post_hooks')
        )

    def lrs(self) -> Tuple[float, ...]:
        """Return the learning rate of each parameter group."""
        return tuple(float(group['lr']) for group in self.groups)

    def highest_lr(self) -> float:
        """Return the highest learning rate of all parameter groups; no sync.

        NaN if a group has none, or has it on a device.
        """
        lrs = []
        for group in self.groups:
            lr = group.get('lr', math.nan)
            # float() of a tensor on a device would wait for the device.
            if isinstance(lr, Tensor) and lr.device.type != 'cpu':
                return math.nan
            lrs.append(float(lr))
        return max(lrs)

    def forget_steps(self) -> None:
        """Forget all steps: weights or optimizer are replaced."""
        self.last_iter = 0
        self._norms: Sequence[Tensor] = ()
        self._stepped: List[Tensor] = []

    def read_settings(self) -> Tuple[List[str], List[Tensor]]:
        """Return the settings that are not finite, in words; no sync.

        Settings on a device are returned as they are.
        """
        # This runs in each update, over up to one group per parameter: no
        # loop in Python as long as all settings are finite numbers.
        values: List[Any] = []
        for key in CHECKED:
            if key in self.groups[0]:
                settings = list(map(itemgetter(key), self.groups))
                is_pair = isinstance(settings[0], tuple)
                values += chain(*settings) if is_pair else settings
        if set(map(type, values)) <= NUMBERS and math.isfinite(sum(values)):
            return [], []
        bad: List[str] = []
        on_device: List[Tensor] = []
        for index, group in enumerate(self.groups):
            for key in CHECKED:
                for value in as_list(group.get(key)):
                    if is_on_device(value):
                        on_device.append(value)
                    elif not math.isfinite(value):
                        bad.append(f'{key} of group {index} is {float(value)}')
        return bad, on_device

    def note_step(self, params: List[Tensor], iteration: int) -> None:
        """Note after a step whether it may have spoiled weights; no sync.

        If weights are bad later, this tells whether the step did it. An
        optimizer of PyTorch with ordinary settings makes no NaN of finite
        gradients, so only for others the norms of weights are computed.

        Args:
            params: The parameters with a gradient.
            iteration: The iteration, as in ``Guard.iter``.
        """
        self._stepped = params
        self._norms = tensor_norms(list(map(local, params)), 2.0)
        self.last_iter = iteration

    def find_spoiler(
        self, weights: Iterable[Tensor]
    ) -> Optional['GuardedParams']:
        """Return the optimizer whose last step spoiled one of the weights.

        It may be another guarded optimizer of the run. Syncs the device.
        """
        bad = set(map(id, weights))
        for params in (self, *_ALIVE):
            norms = read_once({'norms': params._norms})['norms']
            for param, norm in zip(params._stepped, norms):
                if id(param) in bad and not math.isfinite(norm):
                    return params
        return None

    def count_begun(self, begins: bool) -> int:
        """Return the number of steps in a row that began bad states.

        Args:
            begins: Whether the last step was bad for nothing but states that
                it began.
        """
        self._num_begun = self._num_begun + 1 if begins else 0
        return self._num_begun

    def check_steps(self) -> None:
        """Let each step of the run be checked from now on.

        Which optimizer has spoiled the weights may be known on some ranks
        only, so that this is for all of them.
        """
        for params in list(_ALIVE):
            if params is self or self._is_of_same_run(params):
                params.has_spoiled = True

    def describe_step(self, nonfinite: Sequence[str] = ()) -> Dict[str, Any]:
        """Return the value of ``step`` in an event, with the first group.

        Args:
            nonfinite: The settings that are not finite, in words.
        """
        return self._describe_group(self.groups[0], nonfinite)

    def describe_uphill(self) -> Optional[Dict[str, Any]]:
        """Return the value of ``step`` if settings make weights grow."""
        for group in self.groups:
            if not group['params']:
                continue
            step = self._describe_group(group)
            if uphill_settings(step):
                return step
        return None

    def _describe_group(
        self, group: Dict[str, Any], nonfinite: Sequence[str] = ()
    ) -> Dict[str, Any]:
        return {
            'optimizer': type(self.optimizer).__name__,
            'settings': describe(group),
            'nonfinite': list(nonfinite),
            'iter': self.last_iter,
        }

    def foreign(self) -> Set[int]:
        """Return the ids of the parameters of other guarded optimizers."""
        others: Set[int] = set()
        # A list, because garbage collection may shrink the set meanwhile.
        for params in list(_ALIVE):
            if self._is_of_same_run(params):
                others.update(map(id, params))
        return others.difference(map(id, self))

    def left_alone(self) -> Set[int]:
        """Return the ids of parameters that snapshots do not copy."""
        return self.foreign()

    def slices(self) -> Dict[int, List[Slice]]:
        """Return the parts of each flat tensor of an engine, by its id."""
        return {}

    def stepped(self) -> List[Tensor]:
        """Return the tensors that a step writes, but for the state."""
        return list(self)

    def _is_of_same_run(self, params: 'GuardedParams') -> bool:
        """Whether the optimizers of both belong to one run."""
        if self.run is None or params.run is None:
            return self._hub is params._hub
        return self.run is params.run

    def trained(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Return the parameters with a gradient, and the gradients.

        A sharded gradient is returned as this rank's part, a sparse gradient
        as its values.
        """
        params = list(self)
        # This runs in each update, over thousands of parameters: no loop in
        # Python as long as all gradients are plain.
        grads: List[Tensor] = list(map(GRAD, params))
        types = set(map(type, grads))
        if type(None) in types:
            params = [param for param in params if param.grad is not None]
            grads = list(map(GRAD, params))
            types.discard(type(None))
        is_plain = types <= {Tensor} and are_plain(grads)
        if is_plain and not self._has_parts:
            return params, grads
        # Any other gradient is brought into a form that can be judged.
        candidates, params, grads = zip(params, grads), [], []
        for param, grad in candidates:
            if grad.dtype not in PLAIN:
                check_dtype(param, self.is_checked)
            if grad.is_sparse:
                # Duplicate indices must be summed before they are judged.
                grad = param.grad = grad.coalesce()
                grad = grad._values()
            values = stored_values(grad)
            if values is None:
                refuse_kind(f'a gradient of type {type(grad).__name__}')
            elif grad.layout is not torch.strided:
                grad = values
            if self._has_parts:
                grad = local(grad)
                if grad.numel() == 0:  # the whole of it is on other ranks
                    continue
            params.append(param)
            grads.append(grad)
        return params, grads

    def have_gradients(self) -> bool:
        """Whether a parameter may have a gradient; no sync.

        FSDP keeps the gradients of a window elsewhere until its last backward
        pass, so sharded parameters always may.
        """
        # Most often the first parameter has one, and ends the search.
        return self._has_parts or any(
            grad is not None for grad in map(GRAD, self)
        )

    def have_nonzero_gradients(self) -> bool:
        """Whether a parameter may have a gradient that is not zero.

        Reads from the device once per gradient, up to the first that is not
        zero.
        """
        return self._has_parts or any(
            grad is not None and bool((grad != 0).any())
            for grad in map(GRAD, self)
        )

    def place(
        self, params: List[Tensor], models: Iterable[nn.Module]
    ) -> Placement:
        """Return the sharding of ``params``, which ``models`` hold."""
        if not self._has_parts:
            return Placement()
        # Built once: groups of ranks do not change while a run trains.
        if self._shards is None:
            self._shards = Shards(self, models)
        return self._shards.place(params)

    def weights(self, models: Iterable[nn.Module]) -> List[Tensor]:
        """Return all parameters of the optimizer and of the models."""
        # By id, because comparing tensors compares their elements.
        weights = dict(zip(map(id, self), self))
        for model in models:
            for param in model.parameters():
                weights.setdefault(id(param), param)
        return list(weights.values())


def are_plain(grads: List[Tensor]) -> bool:
    """Whether all gradients are dense, in float32 or bfloat16."""
    return set(map(DTYPE, grads)) <= PLAIN and (
        set(map(LAYOUT, grads)) <= {torch.strided}
    )


def is_part(param: Tensor) -> bool:
    """Whether this rank may hold only a part of the parameter."""
    # A lazy parameter has no size before the first forward pass.
    return not is_lazy(param) and (
        hasattr(param, 'to_local')
        or hasattr(param, '_fsdp_flattened')
        or param.numel() == 0
    )
