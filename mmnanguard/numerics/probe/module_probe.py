import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..base.dtype_name import dtype_name
from ..snapshot.tensor_backup import can_compare
from ..update.blame import plain_name
from .sample_tracker import SampleTracker
from .storage_views import key_of

__all__ = ['InputTensor', 'ModuleProbe', 'Origin']

# Whose lines are no one's fault: torch's, and what stands around a module.
SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
# Their outputs are whatever was in memory.
UNFILLED = (
    *('empty', 'empty_like', 'empty_strided', 'new_empty', 'resize'),
    'new_empty_strided',
)
# They write a number that someone asked for: a mask of -inf is no fault.
FILLS = (
    *('fill', 'full', 'full_like', 'new_full', 'masked_fill', 'where'),
    *('scalar_tensor', 'lift', 'lift_fresh', 'constant_pad_nd'),
)
# phase, module, its type, method, line
Place = Tuple[str, str, str, str, str]

# A tensor of the batch, and the numbers of its samples: one, one in each
# row, or none if that is not known.
InputTensor = Tuple[Tensor, Tuple[int, ...]]


@dataclass(frozen=True)
class Origin:
    """Where non-finite numbers came from.

    Attributes:
        phase: 'input', 'weight', 'forward', 'loss' or 'backward'.
        module: Name of the module that ran; '' is the model itself.
        module_type: Its class.
        method: Of the module, that ran.
        op: The operation, as ``aten.convolution``; '' for a tensor that was
            bad to begin with.
        source: File and line of the innermost code outside of torch.
        dtype: Of the output.
        input_absmax: Largest finite absolute value among the inputs.
        output_absmax: The same of the output: 'inf' or 'nan' inclusive.
        samples: Numbers of those in the bad elements; empty if not known.
        is_fill: The number was written on purpose.
    """

    phase: str
    module: str
    module_type: str
    method: str
    op: str
    source: str
    dtype: str
    input_absmax: float
    output_absmax: float
    samples: Tuple[int, ...] = ()
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
        self, model: nn.Module, inputs: Iterable[InputTensor] = ()
    ) -> None:
        super().__init__()
        self._names = {
            id(module): plain_name(name)
            for name, module in model.named_modules()
        }
        self._origins: Dict[int, Origin] = {}  # by storage
        self._senders: Dict[int, Tuple[Place, str]] = {}  # by storage
        self._refs: Dict[int, StorageWeakRef] = {}  # keep addresses unique
        self._forward: Dict[int, Place] = {}  # by autograd node
        self._tracker = SampleTracker()
        self._bad_inputs: Set[int] = set()
        for tensor, samples in inputs:
            if samples:
                self._tracker.add(tensor, samples)
        for tensor, _ in inputs:
            self._add_leaf(tensor, 'input')
        for tensor in [*model.parameters(), *model.buffers()]:
            self._add_leaf(tensor, 'weight')
        self._buffers = {key_of(buffer) for buffer in model.buffers()}

    def origin_of(self, tensor: Tensor) -> Optional[Origin]:
        """Where the bad elements of ``tensor`` began, if it has any."""
        origin = self._origins.get(key_of(tensor))
        if origin is None or origin.phase != 'input':
            return origin
        return replace(origin, samples=tuple(sorted(self._bad_inputs)))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        where = self._locate()
        inputs = floats((args, kwargs))
        bad_inputs = [tensor for tensor in inputs if not is_finite(tensor)]
        absmax = max(map(finite_absmax, inputs), default=0.0)
        outputs = func(*args, **kwargs)
        name = func._schema.name.split('::')[-1].rstrip('_')
        self._tracker.follow(func, args, kwargs, outputs)
        if func.namespace == 'c10d':
            # What it brings from other ranks is not there yet.
            for tensor in floats((args, outputs)):
                self._hold(tensor)
                self._senders[key_of(tensor)] = where, str(func)
            return outputs
        # BatchNorm writes its statistics besides.
        written = [t for t in inputs if key_of(t) in self._buffers]
        for output in [*floats(outputs), *written]:
            if name in UNFILLED or is_finite(output):
                self._clear(output)
                continue
            known = [self._known(tensor, where) for tensor in bad_inputs]
            only_fills = all(origin.is_fill for origin in known)
            if known and not (only_fills and output.isnan().any()):
                # A fault stands above a mask.
                origin = min(known, key=lambda origin: origin.is_fill)
            else:
                origin = self._make_origin(
                    where, str(func), output, absmax, name in FILLS
                )
            self._hold(output)
            self._origins[key_of(output)] = origin
        return outputs

    def _known(self, bad: Tensor, where: Place) -> Origin:
        """Where a bad input of an operation comes from."""
        key = key_of(bad)
        if key not in self._origins:
            # Not made by any operation seen: by another rank, or by NumPy.
            place, op = self._senders.get(key, (where, ''))
            self._hold(bad)
            self._origins[key] = self._make_origin(place, op, bad, 0.0, False)
        return self._origins[key]

    def _clear(self, tensor: Tensor) -> None:
        """Forget what was written over; a sound view of bad numbers leaves
        them where they are.
        """
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes >= tensor.untyped_storage().nbytes():
            self._origins.pop(key_of(tensor), None)
            self._senders.pop(key_of(tensor), None)

    def _hold(self, tensor: Tensor) -> None:
        """Let no other storage get this address; its memory is not kept."""
        if key_of(tensor) not in self._refs:
            self._refs[key_of(tensor)] = StorageWeakRef(
                tensor.untyped_storage()
            )

    def _add_leaf(self, tensor: Tensor, phase: str) -> None:
        if not floats(tensor) or is_finite(tensor):
            return
        # A mask that a model keeps as a buffer; what is trained is none.
        is_mask = (
            phase == 'weight'
            and not tensor.requires_grad
            and not bool((tensor.isnan() | tensor.isposinf()).any())
        )
        origin = self._make_origin(
            (phase, '', '', '', ''), '', tensor, 0.0, is_mask
        )
        self._bad_inputs.update(origin.samples)
        self._hold(tensor)
        self._origins[key_of(tensor)] = origin

    def _make_origin(
        self,
        where: Place,
        op: str,
        output: Tensor,
        input_absmax: float,
        is_fill: bool,
    ) -> Origin:
        is_nan = bool(output.isnan().any())
        samples = self._tracker.samples_of(output, ~torch.isfinite(output))
        return Origin(
            *where[:4],
            op=op.rsplit('.', 1)[0] if op.count('.') > 1 else op,
            source=where[4],
            dtype=dtype_name(output.dtype),
            input_absmax=input_absmax,
            output_absmax=float('nan') if is_nan else float('inf'),
            samples=samples,
            is_fill=is_fill,
        )

    def _locate(self) -> Place:
        """Phase, module, its type and the line that runs now."""
        node: Any = torch._C._current_autograd_node()
        place = self._walk(sys._getframe(2))
        # What a checkpoint runs again in backward is forward.
        if node is None or torch.is_grad_enabled():
            # The node of the operation to come was made just before it. An
            # operation without one (a counter's) finds the last one's.
            number = torch._C._autograd._get_sequence_nr() - 1
            self._forward.setdefault(number, place)
            return place
        known = self._forward.get(node._sequence_nr())
        return ('backward', *(known or place)[1:])

    def _walk(self, frame: Optional[FrameType]) -> Place:
        """The innermost module whose code runs, and the innermost line that
        is of neither torch nor this package. By frames, not by hooks: mm
        heads run ``head.loss()``, which no hook sees.
        """
        source, module = '', None
        while frame is not None and not (source and module):
            code = frame.f_code
            if not source and not code.co_filename.startswith(SKIPPED):
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
                        method_of(owner, code),
                    )
            frame = frame.f_back
        return (*(module or ('loss', '', '', '')), source)


def method_of(owner: nn.Module, code: CodeType) -> str:
    """The method that runs; of PyTorch's own modules only one is called."""
    is_own = not code.co_filename.startswith(SKIPPED)
    is_method = callable(getattr(type(owner), code.co_name, None))
    return code.co_name if is_own and is_method else 'forward'


def floats(tree: Any) -> List[Tensor]:
    """Its tensors that can be bad."""
    return [
        leaf
        for leaf in tree_flatten(tree)[0]
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and can_compare(leaf)
        and leaf.numel() > 0
        and not leaf.is_meta
    ]


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def finite_absmax(tensor: Tensor) -> float:
    return float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
