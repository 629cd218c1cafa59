"""A dispatch mode that finds the operation that made the first NaN or Inf.

PyTorch calls the mode for each operation, forward and backward. The mode
compares inputs with outputs and remembers, for each storage with non-finite
elements, the operation in which they appeared.
"""

import math
import sys
from dataclasses import replace
from itertools import filterfalse
from operator import attrgetter
from types import FrameType
from typing import Dict, Iterable, List, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..base.dtype_name import dtype_name
from ..base.tensor_kinds import is_ordinary
from ..update.blame import plain_name
from .element_facts import (
    finite_absmax,
    floats,
    has_nan,
    has_nan_or_posinf,
    is_finite,
    is_mask_of_inf,
    nonfinite_mask,
)
from .origin import Origin
from .place import (
    Place,
    find_running,
    forward_name,
    is_of_engine,
    line_of_own_backward,
    method_of,
)
from .plain_attributes import name_attributes
from .pole import OperationCall, is_undefined, operands_of
from .sample_tracker import Args, Kwargs, Operation, SampleTracker
from .storage_views import key_of

__all__ = ['InputTensor', 'ModuleProbe']

# Operations whose output is not initialized: a NaN there means nothing.
UNFILLED = (
    *('empty', 'empty_like', 'empty_strided', 'new_empty', 'resize'),
    'new_empty_strided',
)
# Operations that write a requested number: a mask of -inf is no fault.
FILLS = (
    *('fill', 'full', 'full_like', 'new_full', 'masked_fill', 'where'),
    *('scalar_tensor', 'lift', 'lift_fresh', 'constant_pad_nd'),
)
# Their derivatives subtract -inf from -inf if they got nothing else.
LOG_SUMS = ('logsumexp', 'logaddexp')
SOFTMAX = ('aten._softmax', 'aten._log_softmax')

# A tensor of the batch with the numbers of its samples: one number for the
# whole tensor, one for each row, or none if the samples are not known.
InputTensor = Tuple[Tensor, Tuple[int, ...]]


class ModuleProbe(TorchDispatchMode):
    """Finds the first operation with finite inputs and a non-finite output.

    Non-finite numbers are followed through forward and backward. Infinities
    that an operation wrote on request (a mask) are followed as well, and
    blamed only if they reach the tensor that :meth:`origin_of` is asked
    about. Syncs the device with every operation, so it is for replays only.

    Args:
        model: The model whose modules are named.
        inputs: The tensors of the batch. A non-finite input gives the phase
            'input'.
        has_masks: Whether inputs of -inf are masks, as other batches show
            that trained well with them.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Iterable[InputTensor] = (),
        has_masks: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._has_masks = has_masks
        self._names: Dict[int, str] = {}
        for name, module in model.named_modules():
            self._names[id(module)] = plain_name(name)
        self._origins: Dict[int, Origin] = {}  # by storage
        # The place and the name of a collective, by storage of its tensors.
        self._senders: Dict[int, Tuple[Place, str]] = {}
        self._refs: Dict[int, StorageWeakRef] = {}  # keep addresses unique
        self._forward: Dict[int, Place] = {}  # by autograd node
        self._log_dets: Set[int] = set()  # storages
        self._tracker = SampleTracker()
        self._bad_inputs: Set[int] = set()
        # All samples are noted before any origin, which names samples:
        # several inputs may be views of one storage.
        for tensor, samples in inputs:
            # The rows of other tensors, such as sparse ones, are not known.
            if samples and is_ordinary(tensor):
                self._tracker.add(tensor, samples)
        for tensor, _ in inputs:
            self._add_leaf(tensor, 'input')
        for name, param in model.named_parameters():
            self._add_leaf(param, 'weight', plain_name(name))
        for name, buffer in model.named_buffers():
            self._add_leaf(buffer, 'weight', plain_name(name))
        self._buffers = set(map(key_of, model.buffers()))
        # The names of tensors in plain attributes, by storage.
        self._attributes = name_attributes(model)

    def origin_of(self, tensor: Tensor) -> Optional[Origin]:
        """Return the origin of a tensor's non-finite elements, if any."""
        origin = self._origins.get(key_of(tensor))
        if origin is None or origin.phase != 'input':
            return origin
        # Several inputs may be bad, of which only the first is the origin.
        return replace(origin, samples=tuple(sorted(self._bad_inputs)))

    def __torch_dispatch__(
        self,
        func: Operation,
        types: object,
        args: Args = (),
        kwargs: Optional[Kwargs] = None,
    ) -> object:
        """Run an operation, and note the origin of a non-finite output."""
        kwargs = kwargs or {}
        place = self._locate()
        inputs = floats((args, kwargs))
        # Inputs are judged before the operation, which may write to them.
        bad_inputs = list(filterfalse(is_finite, inputs))
        absmax = max(map(finite_absmax, inputs), default=0.0)
        call = OperationCall.before(func, args, kwargs)
        outputs = func(*args, **kwargs)
        name = func._schema.name.split('::')[-1].rstrip('_')
        op = without_overload(str(func))
        self._tracker.follow(func, args, kwargs, outputs)
        if name == 'lift_fresh' and inputs and not inputs[0].dim():
            # A number of the code, as in ``scores[mask] = -1e6``.
            bad_inputs = []
        if name == '_linalg_slogdet':
            for tensor in floats(outputs):
                self._hold(tensor)
                self._log_dets.add(key_of(tensor))
        if name == 'where' and self._is_logdet(inputs, outputs):
            name, op, bad_inputs = 'logdet', 'aten.logdet', []
        if func.namespace == 'c10d':
            # A collective is asynchronous: its result has not arrived yet.
            for tensor in floats((args, outputs)):
                self._hold(tensor)
                self._senders[key_of(tensor)] = place, op
            return outputs
        # BatchNorm also writes its running statistics.
        written = [t for t in inputs if key_of(t) in self._buffers]
        for output in [*floats(outputs), *written]:
            if name in UNFILLED or is_finite(output):
                self._clear(output)
                continue
            origin = self._inherited(output, bad_inputs, place, op)
            if origin is None:
                # Inf beside NaN is in the masks of which the NaN was made.
                only_nan = bool(bad_inputs) and has_nan(output)
                origin = self._make_origin(
                    place, op, output, absmax, name in FILLS, only_nan
                )
                if not origin.is_fill:
                    origin = replace(
                        origin,
                        is_pole=is_undefined(call),
                        operands=operands_of(call, output),
                        mask=self._mask_among(bad_inputs, name, place[5]),
                    )
                elif absmax <= torch.finfo(output.dtype).max:
                    # A larger number overflows in the mask's dtype.
                    origin = replace(
                        origin, mask=f'{origin.op} at {origin.source}'
                    )
            self._hold(output)
            self._origins[key_of(output)] = origin
        return outputs

    def _inherited(
        self, output: Tensor, bad_inputs: List[Tensor], place: Place, op: str
    ) -> Optional[Origin]:
        """Return the origin that an output has from its inputs, if any.

        NaN made of masks alone (-inf minus -inf) has no earlier origin.
        """
        origins = [self._known(tensor, place) for tensor in bad_inputs]
        # Stable: a tensor from an earlier batch comes last, for this window
        # may have spoiled it.
        for origin in sorted(origins, key=attrgetter('is_kept')):
            # The log of a mask of 0 and 1, of which some rows are all 0.
            is_log_of_mask = (
                op in SOFTMAX
                and origin.op == 'aten.log'
                and not any(map(has_nan_or_posinf, bad_inputs))
            )
            if not origin.is_fill and not is_log_of_mask:
                return at_meeting(origin, op, place)
        if not origins or has_nan(output):
            return None
        origin = origins[0]
        if op.endswith(LOG_SUMS) and origin.mask:
            # The mask leaves nothing of these elements.
            made = self._make_origin(place, op, output, 0.0, True)
            return replace(made, mask=origin.mask)
        return origin

    def _is_logdet(self, inputs: List[Tensor], output: object) -> bool:
        """Whether a ``where`` is the last part of ``torch.logdet``.

        It writes NaN where the determinant is negative.
        """
        logs = [t for t in inputs if key_of(t) in self._log_dets]
        is_nan = any(map(has_nan, floats(output)))
        return bool(logs) and is_nan and not any(map(has_nan, logs))

    def _mask_among(
        self, bad_inputs: List[Tensor], name: str, derivative: str
    ) -> str:
        """Return the mask of which an operation made NaN; '' if none.

        A softmax and the derivative of a logsumexp are meant for masks: they
        are bad only if all is masked.
        """
        if name.endswith('softmax') or derivative in LOG_SUMS:
            return ''
        for tensor in bad_inputs:
            mask = self._origins[key_of(tensor)].mask
            if mask:
                return mask
        return ''

    def _known(self, bad: Tensor, place: Place) -> Origin:
        """Return the origin of an operation's non-finite input."""
        key = key_of(bad)
        if key not in self._origins:
            # No operation of this rank made it: another rank or NumPy did, or
            # the model keeps it from an earlier batch.
            place, op = self._senders.get(key, (place, ''))
            self._hold(bad)
            is_mask = not op and is_mask_of_inf(bad)
            origin = self._make_origin(place, op, bad, 0.0, is_mask)
            self._origins[key] = replace(
                origin, tensor=self._attributes.get(key, '')
            )
        return self._origins[key]

    def _clear(self, tensor: Tensor) -> None:
        """Forget the origin of memory that was overwritten as a whole.

        A finite view of a part of the memory proves nothing about the rest.
        """
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes >= tensor.untyped_storage().nbytes():
            self._origins.pop(key_of(tensor), None)
            self._senders.pop(key_of(tensor), None)

    def _hold(self, tensor: Tensor) -> None:
        """Reserve the storage's address without keeping its memory."""
        if key_of(tensor) not in self._refs:
            self._refs[key_of(tensor)] = StorageWeakRef(
                tensor.untyped_storage()
            )

    def _add_leaf(self, tensor: Tensor, phase: str, name: str = '') -> None:
        """Note a tensor that is non-finite before the replay begins."""
        if is_finite(tensor):
            return
        may_mask = phase == 'weight' or self._has_masks
        is_mask = may_mask and is_mask_of_inf(tensor)
        origin = self._make_origin(
            (phase, '', '', '', '', ''), '', tensor, 0.0, is_mask
        )
        mask = 'the batch' if is_mask and phase == 'input' else ''
        origin = replace(origin, tensor=name, mask=mask)
        self._bad_inputs.update(origin.samples)
        for values in floats(tensor):
            self._hold(values)
            self._origins[key_of(values)] = origin

    def _make_origin(
        self,
        place: Place,
        op: str,
        output: Tensor,
        input_absmax: float,
        is_fill: bool,
        only_nan: bool = False,
    ) -> Origin:
        """Return the origin of an output's non-finite elements."""
        absmax = math.inf
        if has_nan(output):
            absmax = math.nan
        bad = nonfinite_mask(output, only_nan)
        samples = self._tracker.samples_of(output, bad)
        return Origin(
            *place[:4],
            op=op,
            source=place[4],
            derivative=place[5],
            dtype=dtype_name(output.dtype),
            input_absmax=input_absmax,
            output_absmax=absmax,
            samples=samples,
            is_fill=is_fill,
        )

    def _locate(self) -> Place:
        """Return the place in the model's code that runs now."""
        # None of the public functions of autograd tells which forward
        # operation a backward operation belongs to.
        node = torch._C._current_autograd_node()
        frame = sys._getframe(2)
        place = self._walk(frame)
        # Activation checkpointing runs forward again during backward, in
        # code of Python. Without that, it is a derivative of a derivative.
        is_backward = node is not None and (
            not torch.is_grad_enabled() or is_of_engine(frame)
        )
        if is_backward:
            known = self._forward.get(node._sequence_nr(), place)
            name, source = forward_name(node.name()), known[4]
            line = line_of_own_backward(frame, node.name())
            if line:
                name, source = node.name(), line
            place = ('backward', *known[1:4], source, name)
        if not is_backward or torch.is_grad_enabled():
            # Autograd made the node of the coming operation just before it.
            # An operation without a node (such as a step of a counter) gets
            # the number of the node before it.
            number = torch._C._autograd._get_sequence_nr() - 1
            self._forward.setdefault(number, place)
        return place

    def _walk(self, frame: Optional[FrameType]) -> Place:
        """Return the innermost module and the user's innermost line."""
        running, source = find_running(frame, self._names)
        if running is None:
            return 'loss', '', '', '', source, ''
        name, owner, code = running
        kind = type(owner).__name__
        phase = 'forward'
        if 'loss' in f'{code.co_name} {kind}'.lower():
            phase = 'loss'
        return phase, name, kind, method_of(owner, code), source, ''


def without_overload(op: str) -> str:
    """Return the name of an operation, as 'aten.pow' for 'aten.pow.Scalar'."""
    return '.'.join(op.split('.')[:2])


def at_meeting(origin: Origin, op: str, place: Place) -> Origin:
    """Return an origin with the derivative that a bad input spoils first.

    The loss may leave such an input out, and be finite. Its derivative still
    multiplies it, by 0.

    Args:
        origin: The origin of the numbers that an operation got.
        op: The operation.
        place: Its place.
    """
    phase, *_, source, derivative = place
    if origin.phase != 'input' or origin.op or phase != 'backward':
        return origin
    return replace(origin, op=op, source=source, derivative=derivative)
