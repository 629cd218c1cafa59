from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..base.shards import local

__all__ = ['TensorBackup', 'can_compare', 'can_judge']

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WIDTH = 1024


class TensorBackup:
    """One buffer or parameter of a module: its copy, and when it was made.

    Attributes:
        registry: '_buffers' or '_parameters'.
        tensor: What hung there when the window began; None is possible.
        copy: Of this rank's part of ``tensor``. A parameter's is on the
            host while it is not known whether forward changes it.
        version: Of ``tensor`` when the copy was made.
        is_uncounted: The version counter cannot be trusted.
        is_shared: Other optimizers' forward passes may change it, too.
        is_changing: A forward pass was seen to change it.
        was_finite: Before any window; None means not known yet.
        checksum: Of ``tensor`` when the window began, while that is probed.
    """

    __slots__ = (
        'checksum',
        'copy',
        'is_changing',
        'is_open',
        'is_shared',
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
        self.is_open = self.is_shared = False
        self.is_changing = not self.is_param
        self._bind()

    def _bind(self) -> None:
        """Take what hangs there now for the original."""
        self.tensor = self.current
        self.copy: Any = None
        self.version: Optional[int] = None
        self.checksum: Any = None
        self.was_finite: Optional[bool] = False
        self.is_uncounted = self.is_param and self.is_changing
        if self.tensor is None:
            return
        if can_judge(self.tensor):
            # Bad weights are found and halted by themselves.
            self.was_finite = True if self.is_param else None
        if not self.is_param:
            self.is_uncounted = isinstance(
                self.owner, _NormBase
            ) or not can_compare(self.tensor)

    def set_changing(self) -> None:
        """What changes a parameter may do so in any way, counted or not."""
        self.is_changing = True
        self.is_uncounted = self.is_uncounted or self.is_param

    @property
    def is_param(self) -> bool:
        return self.registry == '_parameters'

    @property
    def current(self) -> Any:
        """What hangs there now; in a window, maybe no longer ``tensor``."""
        return getattr(self.owner, self.registry).get(self.key)

    @property
    def is_born(self) -> bool:
        """Made in this window: it may well be a mask of -inf, but not NaN."""
        return self.tensor is None and self.current is not None

    @property
    def is_judged(self) -> bool:
        """Can it have become non-finite?"""
        return (
            (self.was_finite is not False or self.is_born)
            and self.current is not None
            and can_judge(self.current)
        )

    def needs_copy(self, is_probing: bool) -> bool:
        """Also makes room for the copy. While it is not known whether the
        version counter can be trusted, it is not.
        """
        if self.current is not self.tensor or self.has_new_shape():
            self._bind()  # since the last window
        if self.tensor is None:
            return False
        if not (is_probing or self.has_new_content()):
            return False
        values = local(self.tensor)
        device = values.device if self.is_changing else torch.device('cpu')
        if self.copy is None or self.copy.device != device:
            self.copy = torch.empty_like(values, device=device)
        self.version = self.tensor._version
        return True

    def drop_copy(self) -> None:
        self.copy = self.version = None

    def has_changed(self) -> bool:
        return (
            self.current is not self.tensor
            or self.has_new_shape()
            or self.has_new_content()
        )

    def has_new_shape(self) -> bool:
        if self.copy is None:
            return False
        tensor = local(self.tensor)
        return (tensor.shape, tensor.dtype) != (
            self.copy.shape,
            self.copy.dtype,
        )

    def has_new_content(self) -> bool:
        """By the version counter, where it can be trusted."""
        return self.tensor is not None and (
            self.is_uncounted or self.version != self.tensor._version
        )

    @torch.no_grad()
    def sum_bits(self) -> Tensor:
        """A checksum, in which each element counts by its place; no sync."""
        values = local(self.tensor).detach()
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
        """Is each element now; syncs."""
        return bool(local(self.current).isfinite().all())

    def is_bad(self) -> bool:
        """Is it now what it was not when the window began; syncs."""
        return (
            self.current is not None
            and can_judge(self.current)
            and not self.is_finite()
            and not self.went_bad_before()
        )

    def went_bad_before(self) -> bool:
        """Was it bad when the window began, by the copy; syncs."""
        is_norm = isinstance(self.owner, _NormBase)
        if self.copy is None:
            return False
        bad = ~self.copy.isfinite() if is_norm else self.copy.isnan()
        return bool(bad.any())

    def is_mask(self) -> bool:
        """Re-bound or resized, to what has -inf and nothing worse; syncs."""
        is_other = self.current is not self.tensor or self.has_new_shape()
        values = local(self.current)
        return is_other and not bool(
            (values.isnan() | values.isposinf()).any()
        )


def ramp_sum(values: Tensor) -> Tensor:
    ramp = torch.arange(1, len(values) + 1, device=values.device)
    return (values.long() * ramp).sum()


def can_compare(tensor: Tensor) -> bool:
    """False for the kinds that hardly any kernel knows (sparse, float8)."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_meta
        and not (tensor.is_floating_point() and tensor.dtype.itemsize < 2)
    )


def can_judge(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and can_compare(tensor)
        and local(tensor).numel() > 0
    )
