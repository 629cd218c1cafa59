"""The smallest operand of each operation that has a pole at 0."""

import sys
import weakref
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor

from ..base.tensor_kinds import is_ordinary
from ..probe.place import find_running
from .without_modes import without_modes

__all__ = ['OperandProbe', 'SmallOperand']

# By the name of a function: the operation, and the place of its operand.
POLES: Dict[str, Tuple[str, int]] = {
    **{name: (name, 0) for name in ('sqrt', 'rsqrt', 'log', 'log2', 'log10')},
    **dict.fromkeys(('div', 'divide', 'true_divide'), ('div', 1)),
    **dict.fromkeys(('__truediv__', '__itruediv__'), ('div', 1)),
    **dict.fromkeys(('__rtruediv__', '__rdiv__', 'reciprocal'), ('div', 0)),
    **dict.fromkeys(('pow', '__pow__', '__ipow__'), ('pow', 0)),
}
# Their result has a bound that the user has set, an epsilon.
BOUNDS = ('clamp', 'clamp_min', 'clip', 'maximum', 'max', 'where')
SUMS = ('add', '__add__', '__radd__', '__iadd__')
# They keep a bound, or the root of it.
KEEPS = (
    *('sqrt', 'rsqrt', 'view', 'reshape', 'unsqueeze', 'squeeze', 'float'),
    *('expand', 'expand_as', 'flatten', 'permute', 'transpose', 'to'),
    *('__getitem__', 'type_as', 'contiguous', 'clone', 'double', 'sum'),
)
# The names of all functions that matter here, without the underscore of those
# that write to their argument, as in ``sqrt_``.
NAMES: Dict[str, str] = {}
for _name in (*POLES, *BOUNDS, *SUMS, *KEEPS):
    NAMES.update({_name: _name, f'{_name}_': _name})


class SmallOperand(NamedTuple):
    """The smallest operand of a call.

    Attributes:
        module: The innermost module that is running; '' is the model.
        op: The operation, such as 'log'.
        source: The user's line, as 'head.py:12'.
        value: The smallest absolute element that is not 0, 0-dim; inf without
            any.
    """

    module: str
    op: str
    source: str
    value: Tensor


class OperandProbe:
    """Notes arguments of roots and logarithms, and denominators.

    They are noted only where a gradient flows through them: what the weights
    do not change has no trend. So constants, masks, batches, optimizers and
    backward passes are left out, and so is the inside of PyTorch's own
    functions, such as norms and losses, which bound their operands. Operands
    that the user bounds are left out as well, as in ``x + 1e-12`` and
    ``x.clamp(min=1e-12)``. Elements that are exactly 0 are ignored.

    Args:
        names: The names of the modules, by their id.

    Attributes:
        values: The smallest operand of each call.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._bounded: Dict[int, Callable[[], Optional[Tensor]]] = {}
        self.values: List[SmallOperand] = []

    def before(
        self, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> None:
        """Note the operand of a function that is about to run.

        Args:
            name: The name of the function, by :func:`name_of`.
            args: Its arguments.
            kwargs: Likewise.
        """
        if name in POLES and torch.is_grad_enabled():
            op, place = POLES[name]
            operand = operand_of(args, kwargs, place)
            is_power = op == 'pow'
            if operand is not None and not (
                is_power and has_no_pole(args, kwargs)
            ):
                self._note(op, operand)

    def after(
        self,
        name: str,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        result: object,
    ) -> None:
        """Note whether the result of a function has a bound."""
        if isinstance(result, Tensor) and self._is_bounded(name, args, kwargs):
            self._bounded[id(result)] = weakref.ref(result)

    def _note(self, op: str, operand: Tensor) -> None:
        # First, as a subclass may run any code when it is asked for more.
        if not is_ordinary(operand) or not operand.requires_grad:
            return
        is_wide = operand.is_floating_point() and operand.dtype.itemsize > 2
        if not is_wide or not operand.numel() or self._has_bound(operand):
            return
        with without_modes():
            # A float64 that float32 has no number for counts as 0.
            size = operand.detach().abs().float()
            value = torch.where(size > 0, size, float('inf')).min()
        running, source = find_running(sys._getframe(), self._names)
        module = running.name if running else ''
        self.values.append(SmallOperand(module, op, source, value))

    def _has_bound(self, tensor: object) -> bool:
        ref = self._bounded.get(id(tensor))
        return ref is not None and ref() is tensor

    def _is_bounded(
        self, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> bool:
        """Whether the result of a function has a bound above 0."""
        if name in SUMS:
            numbers = [*args, *kwargs.values()]
            return any(is_epsilon(number) for number in numbers)
        if name in BOUNDS:
            return len(args) + len(kwargs) > 1
        return name in KEEPS and bool(args) and self._has_bound(args[0])


def name_of(func: Callable[..., Any]) -> str:
    """Return the name of a function that matters here; '' of another one."""
    return NAMES.get(getattr(func, '__name__', ''), '')


def operand_of(
    args: Tuple[Any, ...], kwargs: Dict[str, Any], place: int
) -> Optional[Tensor]:
    """Return the operand of a call if it is a tensor."""
    operand = kwargs.get('other' if place else 'input')
    if len(args) > place:
        operand = args[place]
    return operand if isinstance(operand, Tensor) else None


def has_no_pole(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether a power and its derivative are finite at 0."""
    exponent = kwargs.get('exponent', args[1] if len(args) > 1 else None)
    if not isinstance(exponent, (int, float)):
        return True
    return exponent >= 1 or exponent == 0


def is_epsilon(number: object) -> bool:
    """Whether a number can bound a sum of numbers that are not negative."""
    return isinstance(number, (int, float)) and number > 0
