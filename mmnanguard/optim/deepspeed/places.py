"""The places where an engine keeps what an update changes."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.numerics.base.shards import Placement
from mmnanguard.numerics.update.blame import Slice

__all__ = ['Places', 'cut_out', 'join', 'lay_out', 'take_slices']

# What DeepSpeed's loss scalers count from step to step.
COUNTERS = ('cur_scale', 'cur_iter', 'last_overflow_iter', 'cur_hysteresis')


class Places:
    """An optimizer of PyTorch, which DeepSpeed leaves as it is.

    Args:
        optimizer: The optimizer of the engine.
        module: The model.

    Attributes:
        optimizer: The optimizer of the engine.
        inner: The optimizer of PyTorch's kind that makes the step.
    """

    # Whether DeepSpeed steps on copies of the weights in float32.
    has_masters = False
    # Whether parameters have their content only while they are in use.
    is_gathered = False

    def __init__(self, optimizer: Any, module: nn.Module) -> None:
        self.optimizer = optimizer
        self.module = module
        self.inner = optimizer
        if self.has_masters:
            self.inner = optimizer.optimizer
        self._slices: Dict[int, List[Slice]] = {}
        for master, slices in self._cut():
            self._slices[id(master)] = slices

    def params(self) -> List[Tensor]:
        """Return the trained parameters of the model."""
        params: List[Tensor] = []
        for group in self.inner.param_groups:
            params += group['params']
        return params

    def gradients(self) -> List[Tuple[Tensor, Tensor]]:
        """Return the parameters with a gradient, and the gradients.

        The gradients are still scaled, and may be parts; a change in place
        is seen by the step.
        """
        pairs = []
        for param in self.params():
            if param.grad is not None:
                pairs.append((param, param.grad))
        return pairs

    def placement(self, num_gradients: int) -> Placement:
        """Return the sharding of the gradients."""
        return Placement()

    def masters(self) -> List[Tensor]:
        """Return the tensors that the inner optimizer steps on."""
        return self.params()

    def copies(self) -> List[Tensor]:
        """Return the weights that a step derives from the masters."""
        return []

    def weights(self) -> List[Tensor]:
        """Return all weights of the model, as far as this rank has them."""
        return list(self.module.parameters())

    def slices(self) -> Dict[int, List[Slice]]:
        """Return the parts of each flat tensor, by its id."""
        return self._slices

    def _cut(self) -> List[Tuple[Tensor, List[Slice]]]:
        """Return the flat tensors and their parts."""
        return []

    def clip(self, grads: Sequence[Tensor], factor: float) -> None:
        """Multiply the gradients by a factor, in place."""
        torch._foreach_mul_(list(grads), factor)

    def discard(self) -> None:
        """Drop the gradients without a step; collective."""
        # The engine sets param.grad to None after each step.

    @property
    def scaler(self) -> Any:
        """The object with the loss scale, or None."""
        return None

    def count(self) -> Dict[str, Any]:
        """Return the counters of the loss scaler."""
        counters = {}
        for key in COUNTERS:
            if hasattr(self.scaler, key):
                counters[key] = getattr(self.scaler, key)
        return counters

    def set_counters(self, counters: Dict[str, Any]) -> None:
        """Set the counters of the loss scaler."""
        for key, value in counters.items():
            setattr(self.scaler, key, value)

    def update_scale(self, has_overflown: bool) -> None:
        """Let DeepSpeed count an update, and move the scale by its rules."""
        self.scaler.update_scale(has_overflown)

    def is_growth_due(self) -> bool:
        """Whether DeepSpeed lets the scale grow with the next commit.

        Its versions and classes count differently.
        """
        counters = self.count()
        self.update_scale(False)
        is_due: bool = self.scaler.cur_scale > counters['cur_scale']
        self.set_counters(counters)
        return is_due

    def scale_config(self) -> Any:
        """Return the value of ``loss_scale`` in MMEngine's terms.

        None if losses are not scaled.
        """
        scaler = self.scaler
        params = self.params()
        if scaler is None or not params or params[0].dtype != torch.float16:
            return None
        is_dynamic = getattr(scaler, 'dynamic', False) or getattr(
            scaler, 'dynamic_loss_scale', False
        )
        if not is_dynamic:
            return float(scaler.cur_scale)
        least = getattr(scaler, 'min_scale', None)
        if least is None:
            least = scaler.min_loss_scale
        return {
            'init_scale': float(scaler.cur_scale),
            'growth_factor': float(scaler.scale_factor),
            'backoff_factor': 1 / float(scaler.scale_factor),
            'growth_interval': int(scaler.scale_window),
            'hysteresis': int(getattr(scaler, 'delayed_shift', 1)),
            'min_scale': float(least),
        }


def join(groups: Sequence[Sequence[Tensor]]) -> List[Tensor]:
    """Return the tensors of all groups."""
    tensors: List[Tensor] = []
    for group in groups:
        tensors += group
    return tensors


def lay_out(params: Sequence[Tensor], sizes: Sequence[int]) -> List[Slice]:
    """Return the parts of a flat tensor that holds one after another."""
    slices, start = [], 0
    for param, size in zip(params, sizes):
        slices.append(Slice(param, start, size))
        start += size
    return slices


def cut_out(slices: Sequence[Slice], first: int, total: int) -> List[Slice]:
    """Return the parts of slices that lie in a part of a flat tensor.

    Args:
        slices: The slices of the whole tensor.
        first: The first element of the part.
        total: The number of elements of the part.
    """
    cut = []
    for param, start, size in slices:
        begin, end = max(start, first), min(start + size, first + total)
        if begin < end:
            cut.append(Slice(param, begin - first, end - begin))
    return cut


def take_slices(
    flat: Optional[Tensor], slices: Sequence[Slice]
) -> List[Tuple[Tensor, Tensor]]:
    """Return the parameters of a flat tensor, and their parts of it."""
    pairs: List[Tuple[Tensor, Tensor]] = []
    if flat is None:
        return pairs
    for param, start, size in slices:
        pairs.append((param, flat.view(-1).narrow(0, start, size)))
    return pairs
