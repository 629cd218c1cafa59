import copy
from contextlib import contextmanager, nullcontext
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

from ..base.host_read import read_once
from ..base.rng_state import read_rng, set_rng
from ..snapshot.snapshot import Snapshot
from ..update.observe import nonfinite_indices
from .module_probe import InputTensor, ModuleProbe, Origin
from .output_ranges import record_outputs

__all__ = ['Pass', 'ReplayWrapper', 'Setting', 'leave_no_trace', 'run_pass']


class Setting(NamedTuple):
    """How one optimizer's losses were made and scaled in training.

    Attributes:
        dtype: Of autocast; None switches it off, whatever the model asks for
            around it.
        loss_scale: What a loss is multiplied by.
        accumulation: Micro-batches that a loss is divided by.
    """

    dtype: Optional[torch.dtype] = None
    loss_scale: float = 1.0
    accumulation: int = 1


class Pass(NamedTuple):
    """What one replay of a window came to.

    Attributes:
        is_finite: Losses and gradients are.
        losses: Sum of what went into ``backward``, by optimizer.
        origin: Where it began, if it was looked for and is not finite.
        outputs: Range of what each top-level child put out, if looked for.
    """

    is_finite: bool
    losses: Mapping[str, float]
    origin: Optional[Origin] = None
    outputs: Mapping[str, Mapping[str, Any]] = {}


class ReplayWrapper:
    """Stands in for an optimizer wrapper while a window is run again: all
    but the update.

    Args:
        wrapper: The real one, which still answers for the rest.
        setting: Of that one.
        device: Type of the device.
    """

    def __init__(self, wrapper: Any, setting: Setting, device: str) -> None:
        self._wrapper = wrapper
        self._setting = setting
        self._device = device
        self.losses: List[Tensor] = []
        self.optimizer = stub_wrapper(wrapper.optimizer)
        # A user's own unscale_ is noted in it.
        self.loss_scaler = copy.deepcopy(getattr(wrapper, 'loss_scaler', None))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """For code that asks what it was given."""
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
            self.loss_scaler.scale(value)  # or it knows of no scale yet
        (loss * self._setting.loss_scale).backward(**kwargs)

    def update_params(self, loss: Tensor, *_: Any, **__: Any) -> None:
        self.backward(self.scale_loss(loss))

    def step(self, **kwargs: Any) -> None:
        pass

    def zero_grad(self, **kwargs: Any) -> None:
        pass


def stub_wrapper(optimizer: Any) -> Any:
    """One that neither steps nor forgets gradients, with settings of its
    own: a user's code may change learning rates in ``train_step``.
    """
    stand_in = copy.copy(optimizer)
    stand_in.param_groups = [
        {
            key: value if key == 'params' else copy.deepcopy(value)
            for key, value in group.items()
        }
        for group in optimizer.param_groups
    ]
    stand_in.step = stand_in.zero_grad = lambda *args, **kwargs: None
    return stand_in


@contextmanager
def leave_no_trace(model: nn.Module) -> Iterator[None]:
    """Put back gradients, buffers, random states and all that forward
    changes; compiled code runs as written.
    """
    rng = read_rng()
    grads = [(param, param.grad) for param in model.parameters()]
    for param, _ in grads:
        param.grad = None
    snapshot = Snapshot()
    snapshot.take(model)
    # Before torch 2.6 there is none, and code runs as it is.
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
    """Run a window again; syncs, and is collective where the model is.

    Args:
        model: Whose gradients are looked at.
        run: Forward and backward of all micro-batches; gives the losses, by
            optimizer.
        inputs: What it begins with.
        looks: For where it began, which takes long.
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
        found = [probe.origin_of(tensor) for tensor in bad]
        origin = next((o for o in found if o is not None), None)
    return Pass(not bad, sums(losses), origin, outputs)


def find_bad(
    model: nn.Module, losses: Mapping[str, List[Tensor]], sound: List[Tensor]
) -> List[Tensor]:
    """The earliest first: losses, buffers, gradients from the last layer."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = [loss for several in losses.values() for loss in several]
    return [
        tensors[index]
        for tensors in (flat, sound, grads[::-1])
        for index in nonfinite_indices(tensors)
    ]


def sums(losses: Mapping[str, List[Tensor]]) -> Dict[str, float]:
    return {
        name: sum(read_once({'': several})[''])
        for name, several in losses.items()
    }
