"""The copy of one buffer or parameter of a module."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..base.shards import local

__all__ = ['TensorBackup', 'can_compare', 'can_judge']

# Integer types of as many bytes, to read the bits of any element.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Length of the rows that a checksum adds up.
WIDTH = 1024


class TensorBackup:
    """One buffer or parameter of a module, its copy and how it changes.

    Args:
        owner: The module that holds the tensor.
        registry: '_buffers' or '_parameters'.
        key: The name of the tensor in ``registry``.

    Attributes:
        tensor: The tensor under that name when the window began, or None.
        copy: A copy of this rank's part of ``tensor``. The copy of a
            parameter is on the host while it is not known whether forward
            changes it.
        version: The version counter of ``tensor`` when it was copied.
        is_uncounted: Whether the version counter cannot be trusted.
        is_changing: Whether a forward pass was seen to change the tensor.
        was_finite: Whether the tensor was finite before any window; None if
            that is not known yet.
        is_suspect: Whether the tensor was found to be bad, without a sign of
            when that happened.
    """

    __slots__ = (
        '_is_sharded',
        'copy',
        'is_changing',
        'is_suspect',
        'is_uncounted',
        'key',
        'owner',
        'registry',
        'tensor',
        'version',
        'was_finite',
    )

    def __init__(self, owner: nn.Module, registry: str, key: str) -> None:
        self.owner = owner
        self.registry = registry
        self.key = key
        self.is_changing = not self.is_param
        self._bind()

    def _bind(self) -> None:
        """Make the present tensor the original, without a copy yet."""
        self.tensor = self.current
        self.copy: Optional[Tensor] = None
        self.version: Optional[int] = None
        self.was_finite: Optional[bool] = False
        self.is_suspect = False
        self.is_uncounted = self.is_param and self.is_changing
        self._is_sharded = hasattr(self.tensor, 'to_local')
        if self.tensor is None:
            return
        if can_judge(self.values):
            # Bad weights are found elsewhere, and halt the run.
            self.was_finite = True if self.is_param else None
        if not self.is_param:
            # The kernels of norm layers write their statistics uncounted.
            self.is_uncounted = isinstance(
                self.owner, _NormBase
            ) or not can_compare(self.tensor)

    def set_changing(self) -> None:
        """Note that forward changes the tensor.

        Code that changes a parameter may do so uncounted at any time.
        """
        self.is_changing = True
        self.is_uncounted = self.is_uncounted or self.is_param

    @property
    def is_param(self) -> bool:
        """Whether the tensor is a parameter."""
        return self.registry == '_parameters'

    @property
    def values(self) -> Tensor:
        """The part on this rank of ``tensor``, which must not be None."""
        assert self.tensor is not None
        return local(self.tensor) if self._is_sharded else self.tensor

    @property
    def current(self) -> Optional[Tensor]:
        """The tensor under that name at present; forward may replace it."""
        registry = getattr(self.owner, self.registry)
        tensor: Optional[Tensor] = registry.get(self.key)
        return tensor

    @property
    def current_values(self) -> Tensor:
        """The part on this rank of ``current``, which must not be None."""
        current = self.current
        if current is self.tensor:
            return self.values
        assert current is not None
        return local(current)

    @property
    def is_born(self) -> bool:
        """Whether this window made the tensor.

        A new tensor may well be a mask with -inf, but not with NaN.
        """
        return self.tensor is None and self.current is not None

    @property
    def is_judged(self) -> bool:
        """Whether the tensor can have become non-finite."""
        if self.was_finite is False and not self.is_born:
            return False
        return self.current is not None and can_judge(self.current_values)

    def prepare_copy(self, is_probing: bool) -> bool:
        """Make room for a copy if one is needed, and return whether it is.

        A copy stays valid while the version counter stays constant. While it
        is not known whether the counter can be trusted, each window copies.
        """
        if self.current is not self.tensor or self.has_new_shape():
            self._bind()  # replaced or reshaped since the last window
        if self.tensor is None:
            return False
        if not (is_probing or self.has_new_content()):
            return False
        values = self.values
        # All parameters are copied while probing, which a GPU may not hold.
        device = values.device if self.is_changing else torch.device('cpu')
        # The memory of a copy is used again in the next window.
        if self.copy is None or self.copy.device != device:
            self.copy = torch.empty_like(values, device=device)
        self.version = self.tensor._version
        return True

    def drop_copy(self) -> None:
        """Free the memory of the copy."""
        self.copy = self.version = None

    def has_changed(self) -> bool:
        """Whether the tensor was replaced, reshaped or perhaps written to."""
        return (
            self.current is not self.tensor
            or self.has_new_shape()
            or self.has_new_content()
        )

    def has_new_shape(self) -> bool:
        """Whether the original tensor has another shape or type."""
        copy = self.copy
        if copy is None:
            return False
        values = self.values
        return values.shape != copy.shape or values.dtype != copy.dtype

    def has_new_content(self) -> bool:
        """Whether the original tensor may have been written to."""
        return self.tensor is not None and (
            self.is_uncounted or self.version != self.tensor._version
        )

    def put_back(self) -> bool:
        """Put the original tensor back under its name.

        Returns:
            Whether its content is still to be copied to ``target``.
        """
        getattr(self.owner, self.registry)[self.key] = self.tensor
        if self.tensor is not None and self.has_new_shape():
            assert self.copy is not None
            # Through .data, so that the Parameter object is kept: optimizers
            # know parameters by identity.
            self.tensor.data = self.copy.to(self.tensor.device, copy=True)
            return False
        return self.has_new_content()

    @property
    def target(self) -> Tensor:
        """The memory that the copy is restored to.

        The version counter only counts the restoring if it counted the
        change. So a graph that another optimizer still wants to run backward
        through stays intact.
        """
        return self.values.data if self.is_uncounted else self.values

    @torch.no_grad()
    def sum_bits(self) -> Tensor:
        """Return a checksum in which the place of each element counts.

        Does not sync the device.
        """
        values = self.values.detach()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        flat = values.view(BITS[values.dtype.itemsize]).reshape(-1)
        size = flat.numel() - flat.numel() % WIDTH
        # By rows and by columns, so that no large ramp is needed.
        body = flat[:size].view(-1, WIDTH)
        return (
            ramp_sum(body.sum(1))
            + 31 * ramp_sum(body.sum(0))
            + ramp_sum(flat[size:])
        )

    def is_finite(self) -> bool:
        """Whether all elements are finite at present. Syncs the device."""
        return bool(self.current_values.isfinite().all())

    def is_bad(self) -> bool:
        """Whether the tensor became non-finite in this window.

        Syncs the device.
        """
        return (
            self.current is not None
            and can_judge(self.current_values)
            and not self.is_finite()
            and not self.went_bad_before()
        )

    def went_bad_before(self) -> bool:
        """Whether the tensor was bad when it was copied. Syncs the device."""
        if self.copy is None:
            return False
        # Inf in other buffers may be a mask by design. Parameters that are
        # masks are known: was_finite is False.
        is_norm = isinstance(self.owner, _NormBase)
        if is_norm or (self.is_param and self.was_finite):
            return not bool(self.copy.isfinite().all())
        return bool(self.copy.isnan().any())

    def is_lost(self) -> bool:
        """Whether an unchanged tensor was bad before this window.

        Syncs the device. Code that writes through ``.data`` leaves no sign of
        when it did, so such a tensor is only lost if the next look finds it
        bad again. -inf in other buffers than statistics may be a mask.
        """
        if self.was_finite is False or not self.is_judged:
            return False
        values = self.current_values
        if not bool((values.isnan() | values.isposinf()).any()):
            self.is_suspect = False
            return False
        was_suspect, self.is_suspect = self.is_suspect, True
        return was_suspect or self.went_bad_before()

    def is_mask(self) -> bool:
        """Whether a new tensor or shape has -inf, but no NaN and no +inf.

        Syncs the device.
        """
        is_other = self.current is not self.tensor or self.has_new_shape()
        values = self.current_values
        return is_other and not bool(
            (values.isnan() | values.isposinf()).any()
        )


def ramp_sum(values: Tensor) -> Tensor:
    """Return the sum of 1 * values[0], 2 * values[1] and so on."""
    # A plain sum would miss a permutation (a queue that rotates).
    ramp = torch.arange(1, len(values) + 1, device=values.device)
    return (values.long() * ramp).sum()


def can_compare(tensor: Tensor) -> bool:
    """Whether the kernels used here exist for the tensor.

    They do not exist for sparse, meta and 8-bit floating-point tensors.
    """
    return (
        tensor.layout is torch.strided
        and not tensor.is_meta
        and not (tensor.is_floating_point() and tensor.dtype.itemsize < 2)
    )


def can_judge(values: Tensor) -> bool:
    """Whether a tensor, or this rank's part of it, can be non-finite."""
    return (
        values.is_floating_point()
        and can_compare(values)
        and values.numel() > 0
    )
