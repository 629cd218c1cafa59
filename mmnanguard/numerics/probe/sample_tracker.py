"""A tracker that follows samples through the operations of a replay."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from ..base.tensor_kinds import is_ordinary
from .sample_sets import SampleSets, compact
from .storage_views import ViewLayout, key_of, layout_of, read_through

__all__ = ['SampleTracker']

# An operation of the dispatcher has no static type in PyTorch.
Operation = Any
Args = Tuple[object, ...]
Kwargs = Mapping[str, object]

# Operations that move elements: each output element is one input element.
MOVES = (
    *('cat', 'constant_pad_nd', 'flip', 'gather', 'index', 'index_select'),
    *('repeat', 'roll', 'select_backward', 'slice_backward', 'stack'),
)
RESHAPES = ('view', '_unsafe_view', 'reshape', '_reshape_alias')
# Elementwise operations that PyTorch does not tag as pointwise.
POINTWISE = (
    *('_to_copy', 'clone', 'native_dropout', 'native_dropout_backward'),
    *('nll_loss2d_backward', 'mse_loss', 'smooth_l1_loss', 'huber_loss'),
    *('binary_cross_entropy', 'binary_cross_entropy_with_logits'),
)
# Operations that mix the elements along one dimension only.
ALONG = (
    *('_softmax', '_log_softmax', '_softmax_backward_data', 'cumsum', 'sort'),
    *('_log_softmax_backward_data', 'topk', 'glu', 'logcumsumexp', 'cumprod'),
)
REDUCTIONS = (
    *('sum', 'mean', 'amax', 'amin', 'max', 'min', 'var', 'std', 'prod'),
    *('logsumexp', 'linalg_vector_norm', 'norm', 'any', 'all', 'var_mean'),
)
# Operations that keep rows apart: parts of their names.
ROWS = (
    *('convolution', 'convolution_backward', 'im2col', 'col2im', 'nll_loss'),
    *('batch_norm', 'group_norm', 'pool', 'upsample', 'grid_sampler'),
    *('scaled_dot_product', 'pixel', 'mkldnn'),
)


class SampleTracker:
    """Follows which samples the elements of tensors depend on.

    Tensors have codes (see :class:`SampleSets`). An operation moves, combines
    or reduces the codes in the way in which it treats the elements. Therefore
    samples are still known after Swin's windows or Mixup, and a dimension
    that happens to be as long as the batch is not mistaken for the batch.
    After an operation that is not listed here, the samples count as unknown:
    no name is better than a wrong name.

    Statistics over a batch are ignored: a normalized row depends only on its
    sample.
    """

    def __init__(self) -> None:
        self._sets = SampleSets()
        self._codes: Dict[int, Dict[ViewLayout, Tensor]] = {}  # by storage
        self._refs: Dict[int, StorageWeakRef] = {}  # keep addresses unique

    def add(self, tensor: Tensor, samples: Sequence[int]) -> None:
        """Note the samples of an input.

        Args:
            tensor: The input.
            samples: The number of the only sample, or of the sample of each
                row.
        """
        codes = torch.tensor(list(map(self._sets.number_single, samples)))
        if tensor.dim() == 0:
            codes = codes.reshape(())
        else:
            codes = codes.reshape(-1, *[1] * (tensor.dim() - 1))
        self._store(tensor, codes)

    def samples_of(self, tensor: Tensor, bad: Tensor) -> Tuple[int, ...]:
        """Return the samples of the elements that ``bad`` marks.

        A sample that good elements depend on as well is left out, unless no
        sample would remain.

        Args:
            tensor: The tensor with bad elements.
            bad: Booleans in the shape of ``tensor``; True is bad.

        Returns:
            The numbers of the samples; empty if they are not known.
        """
        codes = self._codes_of(tensor)
        if codes is None:
            return ()
        codes = codes.expand(tensor.shape)
        # Codes are on the host, wherever the tensor is.
        bad_codes = set(codes[bad.cpu()].unique().tolist())
        if 0 in bad_codes:
            return ()
        # With Mixup, a sample that is also part of good elements is innocent.
        suspects = self._sets.union(bad_codes)
        cleared = self._sets.union(set(codes.unique().tolist()) - bad_codes)
        return tuple(sorted(suspects - cleared or suspects))

    def follow(
        self, func: Operation, args: Args, kwargs: Kwargs, outputs: object
    ) -> None:
        """Derive the codes of an operation's outputs, after it has run."""
        inputs = tensors((args, kwargs))
        written = tensors(outputs)
        # Most operations on weights alone end here. Codes that an output has
        # already, as the target of an in-place operation, must be updated.
        if not any(map(self._is_known, inputs)) and not any(
            map(self._has_views, written)
        ):
            return
        try:
            derived = self._derive(func, args, kwargs, inputs, written)
        except (RuntimeError, IndexError):
            derived = []  # unexpected shapes: the samples are not known
        # The samples of further outputs are not known.
        derived += [None] * (len(written) - len(derived))
        for output, codes in zip(written, derived):
            # An operation that is treated wrongly here must not end a replay.
            if codes is not None and not fits(codes, output):
                codes = None
            try:
                if func._schema.is_mutable:
                    self._rewrite(output, codes)
                self._store(output, codes)
            except RuntimeError:  # memory that overlaps itself
                self._codes.pop(key_of(output), None)

    def _derive(
        self,
        func: Operation,
        args: Args,
        kwargs: Kwargs,
        inputs: List[Tensor],
        outputs: List[Tensor],
    ) -> List[Optional[Tensor]]:
        """Return codes for the first outputs; None where not known."""
        name = func._schema.name.split('::')[-1]
        plain = name.rstrip('_')  # an in-place form treats codes alike
        codes = list(map(self._codes_of, inputs))
        if plain == 'copy' and len(codes) > 1:
            return [codes[1]]
        if plain in ('copy', 'fill', 'zero', 'as_strided'):
            return []
        if plain in RESHAPES:
            full = self._full(inputs[0])
            if full is None:
                return []
            return [full.reshape(outputs[0].shape)]
        if is_view(func) or plain in MOVES:
            # The operation itself moves the codes as it moves the elements.
            return list(tensors(func(*self._coded(args), **kwargs)))
        if plain == 'embedding':
            # A row of the table depends on the sample of its index.
            indices = codes[1]
            return [] if indices is None else [indices.unsqueeze(-1)]
        if plain in ('mm', 'bmm', 'addmm', 'baddbmm'):
            # The inner dimension is summed over.
            *bias, left, right = codes
            factors = self._sets.fold(left, -1), self._sets.fold(right, -2)
            return [self._sets.combine([*bias, *factors])]
        if 'layer_norm' in plain:
            return self._layer_norm(plain, args, codes)
        if plain in ALONG:
            dim = bind_arguments(func, args, kwargs).get('dim', -1)
            mixed = self._sets.fold(self._sets.combine(codes), dim)
            return [mixed] * len(outputs)
        if plain in REDUCTIONS and len(inputs) == 1:
            return [self._reduce(func, args, kwargs, codes[0])] * len(outputs)
        if any(map(plain.__contains__, ROWS)):
            return self._keep_rows(codes, inputs, outputs[0])
        if torch.Tag.pointwise in func.tags or plain in POINTWISE:
            return [self._sets.combine(codes)] * len(outputs)
        return []

    def _layer_norm(
        self, name: str, args: Args, codes: List[Optional[Tensor]]
    ) -> List[Optional[Tensor]]:
        """Return the codes of a layer norm, which mixes its last dimensions.

        Forward has three outputs: the result, the mean and the deviation.
        Backward has two inputs with samples: the gradient and the input.
        """
        # The shape of the dimensions is the first list among the arguments.
        shape = next(a for a in args if isinstance(a, (list, tuple)))
        is_backward = 'backward' in name
        mixed = self._sets.combine(codes[: 1 + is_backward])
        for dim in range(len(shape)):
            mixed = self._sets.fold(mixed, -1 - dim)
        # Of backward, only the first output is a gradient of samples.
        return [mixed] if is_backward else [mixed] * 3

    def _keep_rows(
        self,
        codes: List[Optional[Tensor]],
        inputs: List[Tensor],
        output: Tensor,
    ) -> List[Optional[Tensor]]:
        """Return the codes of an operation that mixes all but the rows."""
        if output.dim() == 0 or len(output) == 0:
            return []
        rows = []
        for code, tensor in zip(codes, inputs):
            # A weight has as many rows as the batch only by accident, and has
            # no codes.
            has_rows = tensor.dim() > 0 and len(tensor) == len(output)
            if code is not None and has_rows:
                rows.append(self._sets.fold_rows(code, output.dim()))
        return [self._sets.combine(rows)]

    def _reduce(
        self,
        func: Operation,
        args: Args,
        kwargs: Kwargs,
        codes: Optional[Tensor],
    ) -> Optional[Tensor]:
        """Return the codes of a reduction over some or all dimensions."""
        if codes is None:
            return None
        arguments = bind_arguments(func, args, kwargs)
        dims = arguments.get('dim')
        if isinstance(dims, int):
            dims = [dims]
        # Without 'dim', PyTorch reduces all dimensions.
        dims = dims or range(codes.dim())
        for dim in dims:
            codes = self._sets.fold(codes, dim)
        if codes is None or arguments.get('keepdim'):
            return codes
        # From the last dimension on, so that the numbers of the dimensions
        # before it stay valid.
        reduced = [dim % codes.dim() for dim in dims]
        for dim in sorted(reduced, reverse=True):
            codes = codes.squeeze(dim)
        return codes

    def _coded(self, args: Args) -> Args:
        """Return the arguments with the first one replaced by its codes."""

        def replace(leaf: object) -> object:
            """Return the codes of a tensor, and anything else unchanged."""
            if not isinstance(leaf, Tensor):
                return leaf
            full = self._full(leaf)
            if full is None:
                return torch.zeros(1).long().expand(leaf.shape)
            return full

        # Codes are on the CPU, so that other tensors (indices) must be, too.
        data = tree_map(replace, args[0])
        return (data, *tree_map_only(Tensor, Tensor.cpu, args[1:]))

    def _full(self, tensor: Tensor) -> Optional[Tensor]:
        """Return the codes expanded to the tensor's shape."""
        codes = self._codes_of(tensor)
        if codes is None:
            return None
        return codes.expand(tensor.shape)

    def _is_known(self, tensor: Tensor) -> bool:
        """Whether a tensor has codes."""
        return self._codes_of(tensor) is not None

    def _has_views(self, tensor: Tensor) -> bool:
        """Whether some view of a tensor's memory has codes."""
        return key_of(tensor) in self._codes

    def _codes_of(self, tensor: Tensor) -> Optional[Tensor]:
        """Return the codes of a tensor, if any view of its memory has some."""
        views = self._codes.get(key_of(tensor))
        if not views:
            return None
        layout = layout_of(tensor)
        if layout not in views:
            # No operation was seen to make this view.
            try:
                views[layout] = read_through(tensor, views, layout)
            except RuntimeError:  # memory that overlaps itself
                return None
        return views[layout]

    def _store(self, tensor: Tensor, codes: Optional[Tensor]) -> None:
        """Set the codes of a view, or forget them if ``codes`` is None."""
        key = key_of(tensor)
        if codes is None:
            self._codes.get(key, {}).pop(layout_of(tensor), None)
            return
        if key not in self._refs:
            self._refs[key] = StorageWeakRef(tensor.untyped_storage())
        views = self._codes.setdefault(key, {})
        views[layout_of(tensor)] = compact(codes)

    def _rewrite(self, tensor: Tensor, codes: Optional[Tensor]) -> None:
        """Update the codes of all other views of memory that was written.

        Args:
            tensor: The view through which the memory was written.
            codes: The new codes of this view.
        """
        if codes is None:
            codes = torch.zeros([1] * tensor.dim(), dtype=torch.long)
        layout = layout_of(tensor)
        views = self._codes.get(key_of(tensor), {})
        for other, known in views.items():
            if other != layout:
                # In this order, so that the new codes overwrite the old codes.
                history = {other: known, layout: codes}
                views[other] = read_through(tensor, history, other)


def is_view(func: Operation) -> bool:
    """Whether an operation returns a view of an input."""
    for value in func._schema.returns:
        # An output that is written to is an in-place result, not a view.
        if value.alias_info is not None and not value.alias_info.is_write:
            return True
    return False


def fits(codes: Tensor, tensor: Tensor) -> bool:
    """Whether the codes can be expanded to the tensor's shape."""
    if codes.dim() != tensor.dim():
        return False
    for size, full_size in zip(codes.shape, tensor.shape):
        if size not in (1, full_size):
            return False
    return True


def bind_arguments(
    func: Operation, args: Args, kwargs: Kwargs
) -> Dict[str, Any]:
    """Return an operation's arguments by name."""
    arguments = dict(kwargs)
    for argument, value in zip(func._schema.arguments, args):
        arguments[argument.name] = value
    return arguments


def tensors(tree: object) -> List[Tensor]:
    """Return the tensors of a tree that have a storage and strides."""
    leaves = []
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Tensor) and is_ordinary(leaf):
            leaves.append(leaf)
    return leaves
