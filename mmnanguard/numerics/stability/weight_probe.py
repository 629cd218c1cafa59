"""The size of an update beside the weights."""

from typing import List, Mapping, Set, Tuple

import torch
from torch import Tensor, nn

from ..base.shards import local
from ..base.tensor_kinds import is_ordinary
from .failsafe import Failsafe
from .without_modes import without_modes

__all__ = ['WeightProbe']

# Elements of each matrix that are compared, evenly spread.
NUM_ELEMENTS = 4096
# Smaller matrices turn in a few updates of healthy runs.
LEAST_ELEMENTS = 100


class WeightProbe:
    """Copies some elements of the weight matrices, to compare them later.

    Biases, norms, matrices of fewer than 100 elements, embeddings of tokens
    that are no matrices of a module, and weights that begin with 0, such as
    the second matrix of LoRA, are left out: their ratios are large in healthy
    runs.

    Args:
        params: The trained parameters by name.
        zeros: The names of the matrices that began with 0.
        failsafe: Copies the elements; after a failure none are compared.

    Attributes:
        names: The names of the matrices, known also after a failure.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        zeros: Set[str],
        failsafe: Failsafe,
    ) -> None:
        self.names: List[str] = []
        self._params: List[nn.Parameter] = []
        self._before: List[Tensor] = []
        for name, param in params.items():
            if name not in zeros and is_matrix(name, param):
                self.names.append(name)
                self._params.append(param)
        failsafe.run(str, self._copy)

    def _copy(self) -> None:
        with without_modes(), torch.no_grad():
            self._before = [some(param).clone() for param in self._params]

    def norms(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Return the L2 norm of each update and of each weight; no sync."""
        if not self._params:
            return [], []
        with without_modes(), torch.no_grad():
            before = [x.float() for x in self._before]
            now = [some(p).float() for p in self._params]
            moved = torch._foreach_sub(now, before)
            return (
                list(torch._foreach_norm(moved)),
                list(torch._foreach_norm(before)),
            )


def is_matrix(name: str, param: Tensor) -> bool:
    """Whether a parameter is the matrix of a module, in ordinary memory."""
    return (
        name.rpartition('.')[2] == 'weight'
        and param.dim() >= 2
        and param.requires_grad
        and param.is_floating_point()
        and is_ordinary(local(param.detach()))
        # Of the whole matrix, so that all ranks compare the same ones.
        and param.numel() >= LEAST_ELEMENTS
    )


def some(param: Tensor) -> Tensor:
    """Return evenly spread elements of a parameter, 1-dim.

    A view, unless the parameter is not contiguous.
    """
    values = local(param.detach()).reshape(-1)
    return values[:: max(-(-values.numel() // NUM_ELEMENTS), 1)]
