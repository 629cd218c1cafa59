"""The copy of one buffer or parameter of a module."""

from typing import Callable, Container, Optional
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..base.shards import local
from ..base.tensor_kinds import (
    copy_of,
    distinct_memory,
    is_ordinary,
    real_values,
    stored_values,
    write,
)
from .uncounted import sum_bits, writes_uncounted

__all__ = ['TensorBackup']


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
        is_ordinary: Whether the tensor's bits can be copied and compared by
            the kernels for many tensors. Any other tensor is copied by its
            own methods.
        is_lost: Whether the tensor cannot be copied; it is left alone.
        is_uncounted: Whether the version counter cannot be trusted.
        is_changing: Whether a forward pass was seen to change the tensor.
        was_finite: Whether the tensor was finite before any window; None if
            that is not known yet.
        is_suspect: Whether the tensor was found to be bad, without a sign of
            when that happened.
    """

    __slots__ = (
        '__weakref__',
        '_has_floats',
        '_owner',
        '_read',
        'copy',
        'is_changing',
        'is_lost',
        'is_ordinary',
        'is_suspect',
        'is_uncounted',
        'key',
        'registry',
        'tensor',
        'version',
        'was_finite',
    )

    def __init__(self, owner: nn.Module, registry: str, key: str) -> None:
        self._owner = ref(owner)
        self.registry = registry
        self.key = key
        self.is_changing = not self.is_param
        self._bind()

    @property
    def owner(self) -> nn.Module:
        """The module that holds the tensor; must be alive.

        A forward pass may make modules anew, which must not be kept alive.
        """
        owner = self._owner()
        assert owner is not None
        return owner

    def is_of(self, modules: Container[Optional[nn.Module]]) -> bool:
        """Whether one of some modules holds the tensor."""
        return self._owner() in modules

    def _bind(self) -> None:
        """Make the present tensor the original, without a copy yet."""
        self.tensor = self.current
        self.copy: Optional[Tensor] = None
        self.version: Optional[int] = None
        self.was_finite: Optional[bool] = False
        self.is_suspect = False
        self.is_uncounted = self.is_param and self.is_changing
        self.is_ordinary, self.is_lost = True, False
        self._has_floats = False
        self._read: Optional[Callable[[Tensor], Tensor]] = None
        if self.tensor is None:
            return
        self._bind_kind(self.tensor)
        if real_values(self.tensor) is not None:
            # Bad weights are found elsewhere, and halt the run.
            self.was_finite = True if self.is_param else None
        if not self.is_param:
            # The kernels of norm layers write their statistics uncounted.
            # So does code that changes the values of a sparse tensor.
            self.is_uncounted = not self.is_lost and (
                writes_uncounted(self.owner) or not self.is_ordinary
            )

    def _bind_kind(self, tensor: Tensor) -> None:
        """Find out how the tensor can be read and copied."""
        if hasattr(tensor, 'to_local'):
            self._read = local
        self.is_ordinary = is_ordinary(self.values)
        if not self.is_ordinary:
            self.is_lost = copy_of(self.values) is None
            return
        self._has_floats = is_float(self.values)
        # Once: each call of local() returns another object.
        values = self.values
        if distinct_memory(values) is not values:
            self._read = distinct_part

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
        return self._read(self.tensor) if self._read else self.tensor

    @property
    def current(self) -> Optional[Tensor]:
        """The tensor under that name at present; forward may replace it."""
        registry = getattr(self.owner, self.registry)
        tensor: Optional[Tensor] = registry.get(self.key)
        return tensor

    @property
    def current_values(self) -> Optional[Tensor]:
        """The numbers of this rank's part of ``current``, if it has any."""
        current = self.current
        # Most windows take this way, for each statistic of a norm layer.
        if current is self.tensor and self._has_floats:
            return self.values
        return None if current is None else real_values(current)

    @property
    def is_born(self) -> bool:
        """Whether this window made the tensor.

        A new tensor may well be a mask with -inf, but not with NaN.
        """
        return self.tensor is None and self.current is not None

    @property
    def is_judged(self) -> bool:
        """Whether the tensor can have become non-finite."""
        return self.was_finite is not False or self.is_born

    @property
    def is_opaque(self) -> bool:
        """Whether the tensor is dense and cannot be read, as if quantized."""
        if self.tensor is None or self.is_ordinary:
            return False
        return self.is_lost or self.tensor.layout is torch.strided

    @property
    def is_unread(self) -> bool:
        """Whether the tensor holds floating-point numbers nobody can read."""
        tensor = self.tensor
        if tensor is None or self.is_ordinary or self.is_lost:
            return False
        # A tensor on the device 'meta' has no numbers.
        return (
            tensor.is_floating_point()
            and not tensor.is_meta
            and stored_values(tensor) is None
        )

    @property
    def has_counter(self) -> bool:
        """Whether the tensor counts the changes of its content."""
        return self.tensor is not None and version_of(self.tensor) is not None

    @property
    def is_compared(self) -> bool:
        """Whether a checksum can find changes that are not counted."""
        return (
            self.tensor is not None
            and self.is_ordinary
            and not self.is_uncounted
        )

    @property
    def baseline(self) -> Optional[Tensor]:
        """The numbers of the copy, if it has any."""
        return None if self.copy is None else real_values(self.copy)

    def prepare_copy(self, is_probing: bool) -> bool:
        """Make room for a copy if one is needed, and return whether it is.

        A copy stays valid while the version counter stays constant. While it
        is not known whether the counter can be trusted, each window copies.
        """
        if self.current is not self.tensor or self.has_new_shape():
            self._bind()  # replaced or reshaped since the last window
        if self.tensor is None or self.is_lost:
            return False
        if not (is_probing or self.has_new_content()):
            return False
        values = self.values
        if not self.is_ordinary:
            self.copy = copy_of(values)
            self.version = version_of(self.tensor)
            return False
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
        # A tensor that is not ordinary may have no shape.
        if copy is None or not self.is_ordinary:
            return False
        values = self.values
        return values.shape != copy.shape or values.dtype != copy.dtype

    def has_new_content(self) -> bool:
        """Whether the original tensor may have been written to."""
        if self.tensor is None or self.is_lost:
            return False
        return self.is_uncounted or self.version != version_of(self.tensor)

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
        if not self.has_new_content():
            return False
        if not self.is_ordinary and self.copy is not None:
            write(self.values, self.copy)
            return False
        return True

    @property
    def target(self) -> Tensor:
        """The memory that the copy is restored to.

        The version counter only counts the restoring if it counted the
        change. So a graph that another optimizer still wants to run backward
        through stays intact.
        """
        return self.values.data if self.is_uncounted else self.values

    def sum_bits(self) -> Tensor:
        """Return the checksum of the tensor's content; no sync."""
        return sum_bits(self.values)

    def is_finite(self) -> bool:
        """Whether all elements are finite at present. Syncs the device."""
        values = self.current_values
        return values is None or bool(values.isfinite().all())

    def is_bad(self) -> bool:
        """Whether the tensor became non-finite in this window.

        Syncs the device.
        """
        return not self.is_finite() and not self.went_bad_before()

    def was_filled(self) -> bool:
        """Whether a tensor of nothing but 0 now has other numbers.

        Integers do not count: they are pointers and counters. Syncs the
        device.
        """
        before, values = self.baseline, self.current_values
        if before is None or values is None:
            return False
        return bool(values.any()) and not bool(before.any())

    def went_bad_before(self) -> bool:
        """Whether the tensor was bad when it was copied. Syncs the device."""
        values = self.baseline
        if values is None:
            return False
        # Inf in other buffers may be a mask by design. Parameters that are
        # masks are known: was_finite is False.
        is_norm = isinstance(self.owner, _NormBase)
        if is_norm or (self.is_param and self.was_finite):
            return not bool(values.isfinite().all())
        return bool(values.isnan().any())

    def went_bad_unseen(self) -> bool:
        """Whether an unchanged tensor was bad before this window.

        Syncs the device. Code that writes through ``.data`` leaves no sign of
        when it did, so such a tensor is only lost if the next look finds it
        bad again. -inf in other buffers than statistics may be a mask.
        """
        values = self.current_values
        if self.was_finite is False or values is None:
            return False
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
        return (
            is_other
            and values is not None
            and not bool((values.isnan() | values.isposinf()).any())
        )


def distinct_part(tensor: Tensor) -> Tensor:
    """Return the memory of this rank's part of a tensor, each element once."""
    return distinct_memory(local(tensor))


def is_float(values: Tensor) -> bool:
    """Whether ordinary memory holds real numbers that kernels can judge."""
    return (
        values.is_floating_point()
        and values.element_size() > 1
        and values.numel() > 0
    )


def version_of(tensor: Tensor) -> Optional[int]:
    """Return the version counter of a tensor; inference tensors have none."""
    try:
        return tensor._version
    except Exception:
        # A subclass may raise anything when an attribute is read.
        return None
