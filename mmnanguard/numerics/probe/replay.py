"""The replay of a window of micro-batches, without any lasting effect.

The caller passes a function that runs forward and backward of the window, with
a :class:`ReplayWrapper` in place of the optimizer wrapper. :func:`run_pass`
calls it, judges the results and restores the model.
"""

import copy
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.host_read import read_once
from ..base.rng_state import read_rng, set_rng
from ..snapshot.snapshot import Snapshot
from ..update.blame import plain_name
from ..update.observe import nonfinite_indices
from .element_facts import finite_absmax
from .module_probe import InputTensor, ModuleProbe
from .origin import Origin
from .output_ranges import Range, record_outputs

HUGE = 1e6

__all__ = ['Pass', 'ReplayWrapper', 'Setting', 'leave_no_trace', 'run_pass']


# The modules of PyTorch that wrap a model for several devices.
PARALLEL = ('torch.nn.parallel', 'torch.distributed')


class Setting(NamedTuple):
    """The way in which the losses of an optimizer are made and scaled.

    Attributes:
        dtype: The dtype of autocast. None switches autocast off, also where
            the model's surroundings ask for it.
        loss_scale: The factor on each loss before ``backward``.
        accumulation: The number of micro-batches that a loss is divided by.
    """

    dtype: Optional[torch.dtype] = None
    loss_scale: float = 1.0
    accumulation: int = 1


class Pass(NamedTuple):
    """The result of one replay of a window.

    Attributes:
        is_finite: Whether all losses, buffers and gradients were finite.
        losses: The sum of the losses given to ``backward``, by optimizer.
        origin: The operation that made the first non-finite number; None if
            there was none, or if the replay ran without a probe.
        outputs: The range of the outputs of each top-level child of the
            model; empty if the replay ran without a probe.
        huge_weight: The name of a parameter that holds numbers above 1e6, if
            the origin got such numbers; else ''.
        grads_are_finite: Whether all gradients were finite.
    """

    is_finite: bool
    losses: Mapping[str, float]
    origin: Optional[Origin] = None
    outputs: Mapping[str, Range] = {}
    huge_weight: str = ''
    grads_are_finite: bool = True


class ReplayWrapper:
    """An optimizer wrapper for replays, which does everything but update.

    It has the methods of ``OptimWrapper`` that a model's ``train_step`` may
    call.

    Args:
        wrapper: The real wrapper. Attributes that this class does not have
            are read from it.
        setting: The way in which losses are made and scaled in this replay.
        device: The type of the device, such as 'cuda'.
    """

    def __init__(self, wrapper: Any, setting: Setting, device: str) -> None:
        self._wrapper = wrapper
        self._setting = setting
        self._device = device
        self.losses: List[Tensor] = []
        optimizer = wrapper.optimizer
        # An engine wraps the optimizer in a class of its own.
        if not isinstance(optimizer, Optimizer):
            optimizer = optimizer.optimizer
        self.optimizer = stub_optimizer(optimizer)
        # A copy, because a user's own call of unscale_ changes its state.
        self.loss_scaler = copy_scaler(getattr(wrapper, 'loss_scaler', None))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the real wrapper, for code that tests the type."""
        return type(self._wrapper)

    @property
    def param_groups(self) -> List[Dict[str, Any]]:
        """The parameter groups of the replay's optimizer."""
        return self.optimizer.param_groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under the autocast of the setting."""
        dtype = self._setting.dtype
        with torch.autocast(
            self._device, dtype=dtype, enabled=dtype is not None
        ):
            yield

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Divide a loss by the number of micro-batches, as MMEngine does."""
        return loss / self._setting.accumulation

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Record a loss and run its backward pass."""
        value = loss.detach()
        total = value
        # A loss of another shape comes with a gradient in kwargs.
        if total.dim() > 0:
            total = total.sum()
        self.losses.append(total)
        if self.loss_scaler is not None:
            # A scaler makes its scale tensor in the first call of scale().
            self.loss_scaler.scale(value)
        # Scaled here and not by the scaler, whose scale is that of training.
        (loss * self._setting.loss_scale).backward(**kwargs)

    def update_params(self, loss: Tensor, *_: object, **__: object) -> None:
        """Run the backward pass without an update."""
        self.backward(self.scale_loss(loss))

    def step(self, **kwargs: object) -> None:
        """Ignore a step."""

    def zero_grad(self, **kwargs: object) -> None:
        """Keep the gradients, which are judged at the end of the window."""


def copy_scaler(scaler: Any) -> Any:
    """Return a copy of a loss scaler that does not unscale gradients.

    A model's ``train_step`` may call ``unscale_`` in each iteration. Twice
    before a step, that is an error, and a replay makes no step.
    """
    if scaler is None:
        return None
    stub = try_deepcopy(scaler)
    if stub is not scaler:
        stub.unscale_ = lambda optimizer: None
    return stub


def stub_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return a copy of an optimizer that neither steps nor clears gradients.

    The parameter groups are copied, because a model's ``train_step`` may
    change learning rates. Everything else is shared.
    """
    # Without copy.copy, which runs code of the optimizer and loses attributes
    # that torch.optim.Optimizer does not pickle.
    stub: Any = object.__new__(type(optimizer))
    vars(stub).update(vars(optimizer))
    stub.param_groups = []
    for group in optimizer.param_groups:
        settings = dict(group)
        params = settings.pop('params')  # shared, never copied
        for key, value in settings.items():
            settings[key] = try_deepcopy(value)
        stub.param_groups.append({'params': params, **settings})
    stub.step = stub.zero_grad = lambda *args, **kwargs: None
    return stub  # type: ignore[no-any-return]


def try_deepcopy(value: Any) -> Any:
    """Return a deep copy, or the value itself if it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:
        # A user's object may raise anything.
        return value


@contextmanager
def leave_no_trace(model: nn.Module) -> Iterator[None]:
    """Restore gradients, buffers, random states and whatever forward changes.

    Compiled code runs as it is written, without a compiler. Syncs the device.
    """
    rng = read_rng()
    # The replay accumulates into fresh gradients.
    grads = []
    for param in model.parameters():
        grads.append((param, param.grad))
        param.grad = None
    counters = plain_values(model)
    snapshot = Snapshot()
    snapshot.take(model)
    # PyTorch before 2.6 has no stances; compiled code then stays compiled.
    stance = getattr(torch.compiler, 'set_stance', nullcontext)
    try:
        with stance('force_eager'):
            yield
    finally:
        comparison = snapshot.compare()
        read = read_once(comparison.scalars)
        snapshot.restore(snapshot.learn(comparison, read))
        for param, grad in grads:
            param.grad = grad
        for module, values in counters:
            vars(module).update(values)
        set_rng(rng)


def plain_values(model: nn.Module) -> List[Tuple[nn.Module, Dict[str, Any]]]:
    """Return the numbers and strings that modules keep as attributes.

    A model may count its forward passes, for a schedule of its own. What DDP
    and FSDP keep belongs to their C++ parts, too.
    """
    kept = []
    for module in model.modules():
        if type(module).__module__.startswith(PARALLEL):
            continue
        values = {}
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float, str)):
                values[key] = value
        kept.append((module, values))
    return kept


def run_pass(
    model: nn.Module,
    run: Callable[[], Dict[str, List[Tensor]]],
    inputs: List[InputTensor],
    with_probe: bool,
    has_masks: bool = False,
) -> Pass:
    """Run a window again and leave no trace.

    Syncs the device, and is collective if the model's forward or backward is.

    Args:
        model: The model whose buffers and gradients are judged.
        run: Runs forward and backward of all micro-batches and returns the
            losses by optimizer.
        inputs: The tensors of the batches.
        with_probe: Whether to find the operation that made the first
            non-finite number. This takes many times as long.
        has_masks: Whether inputs of -inf are masks, see ModuleProbe.
    """
    with leave_no_trace(model):
        # A buffer that was bad before (a mask of -inf) is not judged.
        sound = [b for b in model.buffers() if not nonfinite_indices([b])]
        if not with_probe:
            losses = run()
            bad = find_bad(model, losses, sound)
            are_finite = not find_bad(model, {}, [])
            return Pass(not bad, sums(losses), grads_are_finite=are_finite)
        probe = ModuleProbe(model, inputs, has_masks)
        with record_outputs(model) as outputs, probe:
            losses = run()
        bad = find_bad(model, losses, sound)
        # The earliest bad tensor that the probe knows about.
        origin = next(filter(None, map(probe.origin_of, bad)), None)
    huge_weight = ''
    if origin is not None and origin.input_absmax > HUGE:
        huge_weight = find_huge_weight(model)
    return Pass(not bad, sums(losses), origin, outputs, huge_weight)


def find_huge_weight(model: nn.Module) -> str:
    """Return the name of the parameter with the largest number.

    Returns '' if no number is above 1e6, which weights never need. Syncs.
    """
    largest, huge_name = HUGE, ''
    for name, param in model.named_parameters():
        absmax = finite_absmax(param.detach())
        if absmax > largest:
            largest, huge_name = absmax, plain_name(name)
    return huge_name


def find_bad(
    model: nn.Module, losses: Mapping[str, List[Tensor]], sound: List[Tensor]
) -> List[Tensor]:
    """Return the non-finite losses, buffers and gradients, earliest first.

    Gradients come in the order of the backward pass, last layer first.

    Args:
        model: The model after the replay.
        losses: The losses of the replay, by optimizer.
        sound: The buffers that were finite before the replay.
    """
    all_losses = list(chain.from_iterable(losses.values()))
    params = list(model.parameters())
    # The backward pass reaches the last layer first.
    grads = [p.grad for p in reversed(params) if p.grad is not None]
    bad: List[Tensor] = []
    for tensors in (all_losses, sound, grads):
        bad += map(tensors.__getitem__, nonfinite_indices(tensors))
    return bad


def sums(losses: Mapping[str, List[Tensor]]) -> Dict[str, float]:
    """Return the sum of each optimizer's losses. Syncs the device."""
    values = read_once(losses)
    return dict(zip(values, map(sum, values.values())))
