import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .blame import plain_name

__all__ = ['ModuleProbe', 'Origin']

TORCH = str(Path(torch.__file__).parent)
# Their outputs are whatever was in memory.
UNFILLED = ('empty', 'new_empty')
# They write a number that someone asked for: a mask of -inf is no fault.
FILLS = ('fill', 'full', 'masked_fill', 'scalar_tensor', 'where', 'lift')


@dataclass(frozen=True)
class Origin:
    """Where non-finite numbers came from.

    Attributes:
        phase: 'input', 'weight', 'forward', 'loss' or 'backward'.
        module: Name of the module that ran; '' is the model itself.
        module_type: Its class.
        op: The operation, as ``aten.convolution``; '' for a tensor that was
            bad to begin with.
        source: File and line of the innermost code outside of torch.
        dtype: Of the output.
        input_absmax: Largest finite absolute value among the inputs.
        output_absmax: The same of the output: 'inf' or 'nan' inclusive.
        rows: Indices along the first dimension of the output that are bad.
        num_rows: Length of that dimension.
        is_fill: The number was written on purpose.
    """

    phase: str
    module: str
    module_type: str
    op: str
    source: str
    dtype: str
    input_absmax: float
    output_absmax: float
    rows: Tuple[int, ...] = ()
    num_rows: int = 0
    is_fill: bool = False


class ModuleProbe(TorchDispatchMode):
    """Follows non-finite numbers through forward and backward to where they
    began: the first operation with finite inputs and a non-finite output.

    Infinities that were written on purpose (a mask) are followed, and blamed
    only where they reach what is asked for. Syncs with every operation: for
    replays, never for training.

    Args:
        model: Whose modules are named.
        inputs: Tensors that the replay begins with; bad ones have the phase
            'input'.
    """

    def __init__(
        self, model: nn.Module, inputs: Iterable[Tensor] = ()
    ) -> None:
        super().__init__()
        self._names = {
            id(module): plain_name(name)
            for name, module in model.named_modules()
        }
        self._origins: Dict[int, Origin] = {}  # by storage
        self._forward: Dict[int, Tuple[str, str, str]] = {}  # by autograd node
        self._kept: List[Any] = []  # a storage is not reused while replaying
        for tensor in inputs:
            self._add_leaf(tensor, 'input')
        for tensor in [*model.parameters(), *model.buffers()]:
            self._add_leaf(tensor, 'weight')
        self._buffers = {storage_of(buffer) for buffer in model.buffers()}

    def origin_of(self, tensor: Tensor) -> Optional[Origin]:
        """Where the bad elements of ``tensor`` began; None if it has none."""
        return self._origins.get(storage_of(tensor))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        where = self._locate()
        before = [
            (tensor, self.origin_of(tensor))
            for tensor in floats(tree_leaves((args, kwargs)))
        ]
        absmax = max((finite_absmax(t) for t, _ in before), default=0.0)
        outputs = func(*args, **kwargs)
        name = func._schema.name.split('::')[-1].rstrip('_')
        self._kept.append(outputs)
        # BatchNorm writes its statistics besides.
        written = [t for t, _ in before if storage_of(t) in self._buffers]
        for output in [*floats(tree_leaves(outputs)), *written]:
            bad = ~torch.isfinite(output)
            if name in UNFILLED or not bad.any():
                self._origins.pop(storage_of(output), None)
                continue
            known = [origin for _, origin in before if origin is not None]
            only_fills = all(origin.is_fill for origin in known)
            if known and not (only_fills and output.isnan().any()):
                # A fault stands above a mask.
                origin = min(known, key=lambda origin: origin.is_fill)
            else:
                origin = make_origin(
                    where, str(func), output, bad, absmax, name in FILLS
                )
                if storage_of(output) in self._buffers:
                    origin = replace(origin, rows=(), num_rows=0)
            self._origins[storage_of(output)] = origin
        return outputs

    def _add_leaf(self, tensor: Tensor, phase: str) -> None:
        if not tensor.is_floating_point() or tensor.isfinite().all():
            return
        # A mask that a model keeps as a buffer.
        is_mask = phase == 'weight' and not tensor.isnan().any()
        self._origins[storage_of(tensor)] = make_origin(
            (phase, '', '', ''), '', tensor, ~tensor.isfinite(), 0.0, is_mask
        )

    def _locate(self) -> Tuple[str, str, str, str]:
        """Phase, module, its type and the line that runs now."""
        node: Any = torch._C._current_autograd_node()
        place = self._walk(sys._getframe(2))
        if node is None:
            # The node of the operation to come was made just before it.
            number = torch._C._autograd._get_sequence_nr() - 1
            self._forward[number] = place[1:]
            return place
        known = self._forward.get(node._sequence_nr())
        return ('backward', *(known or place[1:]))

    def _walk(self, frame: Optional[FrameType]) -> Tuple[str, str, str, str]:
        """The innermost module whose code runs, and the innermost line that
        is not torch's. By frames, not by hooks: mm heads run ``head.loss()``,
        which no hook sees.
        """
        source, module = '', None
        while frame is not None and not (source and module):
            code = frame.f_code
            if not source and not code.co_filename.startswith(TORCH):
                source = f'{Path(code.co_filename).name}:{frame.f_lineno}'
            if module is None and code.co_argcount:
                owner = frame.f_locals.get(code.co_varnames[0])
                if isinstance(owner, nn.Module) and id(owner) in self._names:
                    kind = type(owner).__name__
                    is_loss = 'loss' in f'{code.co_name} {kind}'.lower()
                    module = (
                        'loss' if is_loss else 'forward',
                        self._names[id(owner)],
                        kind,
                    )
            frame = frame.f_back
        return (*(module or ('loss', '', '')), source)


def make_origin(
    where: Tuple[str, str, str, str],
    op: str,
    output: Tensor,
    bad: Tensor,
    input_absmax: float,
    is_fill: bool,
) -> Origin:
    rows: Tuple[int, ...] = ()
    if output.dim() > 0:
        flat = bad.reshape(len(bad), -1).any(1)
        rows = tuple(flat.nonzero().flatten().tolist())
    return Origin(
        *where[:3],
        op=op.rsplit('.', 1)[0] if op.count('.') > 1 else op,
        source=where[3],
        dtype=str(output.dtype).replace('torch.', ''),
        input_absmax=input_absmax,
        output_absmax=float('nan')
        if output.isnan().any()
        else float(output.abs().max()),
        rows=rows,
        num_rows=len(output) if output.dim() > 0 else 0,
        is_fill=is_fill,
    )


def floats(leaves: Iterable[Any]) -> List[Tensor]:
    return [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.numel() > 0
    ]


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def finite_absmax(tensor: Tensor) -> float:
    values = tensor.detach().float().abs()
    return (
        float(values[torch.isfinite(values)].max())
        if bool(torch.isfinite(values).any())
        else 0.0
    )
