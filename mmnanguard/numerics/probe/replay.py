"""A window of micro-batches, run again without any lasting effect."""

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
)

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base.host_read import read_once
from ..base.rng_state import read_rng, set_rng
from ..snapshot.snapshot import Snapshot
from ..update.observe import nonfinite_indices
from .module_probe import InputTensor, ModuleProbe, Origin
from .output_ranges import Range, record_outputs

__all__ = ['Pass', 'ReplayWrapper', 'Setting', 'leave_no_trace', 'run_pass']


class Setting(NamedTuple):
    """The way in which one optimizer's losses are made and scaled.

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
        losses: By optimizer, the sum of the losses given to ``backward``.
        origin: The operation that made the first non-finite number; None if
            there was none, or if the replay ran without a probe.
        outputs: By top-level child of the model, the range of its outputs;
            empty if the replay ran without a probe.
    """

    is_finite: bool
    losses: Mapping[str, float]
    origin: Optional[Origin] = None
    outputs: Mapping[str, Range] = {}


class ReplayWrapper:
    """An optimizer wrapper for replays, which does everything but update.

    Args:
        wrapper: The real wrapper. Attributes that this class does not have
            are read from it.
        setting: How ``wrapper`` makes and scales its losses in this replay.
        device: The type of the device, such as 'cuda'.
    """

    def __init__(self, wrapper: Any, setting: Setting, device: str) -> None:
        self._wrapper = wrapper
        self._setting = setting
        self._device = device
        self.losses: List[Tensor] = []
        self.optimizer = stub_optimizer(wrapper.optimizer)
        # A copy, because a user's own call of unscale_ changes its state.
        self.loss_scaler = copy.deepcopy(getattr(wrapper, 'loss_scaler', None))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the real wrapper, for code that tests the type."""
        return type(self._wrapper)

    @property
    def param_groups(self) -> List[Dict[str, Any]]:
        return self.optimizer.param_groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        dtype = self._setting.dtype
        with torch.autocast(
            self._device, dtype=dtype, enabled=dtype is not None
        ):
            yield

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss / self._setting.accumulation

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        value = loss.detach()
        self.losses.append(value if value.dim() == 0 else value.sum())
        if self.loss_scaler is not None:
            # A scaler makes its scale tensor in the first call of scale().
            self.loss_scaler.scale(value)
        (loss * self._setting.loss_scale).backward(**kwargs)

    def update_params(self, loss: Tensor, *_: object, **__: object) -> None:
        self.backward(self.scale_loss(loss))

    def step(self, **kwargs: object) -> None:
        pass

    def zero_grad(self, **kwargs: object) -> None:
        pass


def stub_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return a copy of an optimizer that neither steps nor clears gradients.

    The copy has parameter groups of its own, because a model's
    ``train_step`` may change learning rates.
    """
    stub: Any = copy.copy(optimizer)
    stub.param_groups = []
    for group in optimizer.param_groups:
        settings = dict(group)
        params = settings.pop('params')  # shared, never copied
        settings = copy.deepcopy(settings)
        stub.param_groups.append({'params': params, **settings})
    stub.step = stub.zero_grad = lambda *args, **kwargs: None
    return stub  # type: ignore[no-any-return]


@contextmanager
def leave_no_trace(model: nn.Module) -> Iterator[None]:
    """Restore gradients, buffers, random states and all that forward changes.

    Compiled code runs as it is written, without a compiler. Syncs the device.
    """
    rng = read_rng()
    grads = []
    for param in model.parameters():
        grads.append((param, param.grad))
        param.grad = None
    snapshot = Snapshot()
    snapshot.take(model)
    # PyTorch before 2.6 has no stances; compiled code then stays compiled.
    stance = getattr(torch.compiler, 'set_stance', nullcontext)
    try:
        with stance('force_eager'):
            yield
    finally:
        snapshot.find_bad(read_once(snapshot.facts()))
        snapshot.restore()
        snapshot.close()
        for param, grad in grads:
            param.grad = grad
        set_rng(rng)


def run_pass(
    model: nn.Module,
    run: Callable[[], Dict[str, List[Tensor]]],
    inputs: List[InputTensor],
    looks: bool,
) -> Pass:
    """Run a window again and leave no trace.

    Syncs the device, and is collective if the model's forward or backward is.

    Args:
        model: The model whose buffers and gradients are judged.
        run: Runs forward and backward of all micro-batches and returns the
            losses by optimizer.
        inputs: The tensors of the batches.
        looks: Whether to find the operation that made the first non-finite
            number. This takes many times as long.
    """
    with leave_no_trace(model):
        sound = [b for b in model.buffers() if not nonfinite_indices([b])]
        if not looks:
            losses = run()
            return Pass(not find_bad(model, losses, sound), sums(losses))
        probe = ModuleProbe(model, inputs)
        with record_outputs(model) as outputs, probe:
            losses = run()
        bad = find_bad(model, losses, sound)
        # The earliest bad tensor that the probe knows about.
        origin = next(filter(None, map(probe.origin_of, bad)), None)
    return Pass(not bad, sums(losses), origin, outputs)


def find_bad(
    model: nn.Module, losses: Mapping[str, List[Tensor]], sound: List[Tensor]
) -> List[Tensor]:
    """Return the non-finite losses, buffers and gradients, earliest first.

    Gradients come in the order of the backward pass, last layer first.

    Args:
        model: The model after the replay.
        losses: By optimizer, the losses of the replay.
        sound: The buffers that were finite before the replay.
    """
    all_losses = list(chain.from_iterable(losses.values()))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    bad: List[Tensor] = []
    for tensors in (all_losses, sound, grads[::-1]):
        bad += map(tensors.__getitem__, nonfinite_indices(tensors))
    return bad


def sums(losses: Mapping[str, List[Tensor]]) -> Dict[str, float]:
    """Return the sum of each optimizer's losses. Syncs the device."""
    values = read_once(losses)
    return {name: sum(values[name]) for name in losses}
