"""The parameters and gradients that a DeepSpeed engine trains."""

from typing import Any, Callable, Dict, Iterable, Iterator, List, Set, Tuple

from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard.numerics.base.shards import Placement
from mmnanguard.numerics.update.blame import Slice

from ..guarded_params import GuardedParams
from .places import Places

__all__ = ['DeepSpeedParams']


class DeepSpeedParams(GuardedParams):
    """The parameters of an engine, known by the places of its optimizer.

    Until :meth:`bind` they are those of the optimizer that the config
    builds, as for any other wrapper.

    Attributes:
        step: Makes the step of the engine's optimizer, and returns whether
            it was applied.
    """

    are_bound = False
    step: Callable[[], bool]

    def __init__(self, optimizer: Optimizer, is_checked: bool = False) -> None:
        self._places = Places(optimizer, nn.Module())
        super().__init__(optimizer, is_checked)

    def bind(self, places: Places) -> None:
        """Take the parameters, gradients and weights from their places."""
        self._places, self.are_bound = places, True
        self.use(places.inner)
        if not places.has_masters:
            super().check_kinds()

    def check_kinds(self) -> None:
        """Leave the check to :meth:`bind`: DeepSpeed may cast the model."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._places.params())

    def left_alone(self) -> Set[int]:
        """Return the ids of parameters that snapshots do not copy.

        DeepSpeed writes trained weights past their version counters, and a
        rejected window derives them from the masters again. With ZeRO 3 no
        parameter has its content between passes.
        """
        weights: List[Tensor] = []
        if self._places.is_gathered:
            weights += self._places.module.parameters()
        elif self._places.has_masters:
            weights += self._places.params()
        return self.foreign().union(map(id, weights))

    def trained(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Return the parameters with a gradient, and the gradients.

        They are this rank's parts with ZeRO 1 to 3.
        """
        if not self._places.has_masters:
            return super().trained()
        params, grads = [], []
        for param, grad in self._places.gradients():
            params.append(param)
            grads.append(grad)
        return params, grads

    def have_gradients(self) -> bool:
        """Whether a parameter may have a gradient; no sync.

        DeepSpeed keeps them in its own buffers.
        """
        return True

    def have_nonzero_gradients(self) -> bool:
        """Whether a parameter may have a gradient that is not zero."""
        return True

    def place(
        self, params: List[Tensor], models: Iterable[nn.Module]
    ) -> Placement:
        """Return the sharding of the gradients of ``params``."""
        return self._places.placement(len(params))

    def weights(self, models: Iterable[nn.Module]) -> List[Tensor]:
        """Return all weights of the engine's model on this rank."""
        return self._places.weights()

    def slices(self) -> Dict[int, List[Slice]]:
        """Return the parts of each flat tensor, by its id."""
        return self._places.slices()

    def stepped(self) -> List[Tensor]:
        """Return the tensors that a step writes, but for the state."""
        return self._places.masters() + self._places.copies()

    def note_step(self, params: List[Tensor], iteration: int) -> None:
        """Note after a step whether it may have spoiled weights; no sync."""
        if self._places.is_gathered:
            params = self._places.masters()
        super().note_step(params, iteration)

    def apply_update(  # type: ignore[override]
        self,
        optimizer: Optimizer,
        params: List[Tensor],
        grads: List[Tensor],
        scale: float,
        clip_coef: float,
        *_: Any,
    ) -> None:
        """Clip, and let DeepSpeed unscale and step.

        ``has_refused`` tells whether DeepSpeed found an overflow itself and
        has not stepped.
        """
        if clip_coef != 1.0 and grads:
            self._places.clip(grads, clip_coef)
        self.has_refused = not self.step()
