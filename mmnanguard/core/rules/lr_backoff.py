"""A smaller learning rate after a large gradient norm."""

from dataclasses import dataclass
from typing import Tuple

from ..checks import check_value, is_count, is_finite_number

__all__ = ['LrBackoff']


@dataclass(frozen=True)
class LrBackoff:
    """The rule for back-off, ``optim_wrapper.guard.lr_backoff=dict(...)``.

    After a gradient norm above a limit, this update and the next ones use a
    smaller learning rate. The factor changes learning rates during the
    optimizer's step only: schedulers, logs and checkpoints never see it.

    Attributes:
        above: The limit of the gradient norm before clipping, exclusive.
        factor: The number by which a large norm multiplies the present
            factor.
        floor: The lowest factor, inclusive.
        recovery: Number of committed updates in which the factor returns to
            1, in equal steps.

    Raises:
        GuardConfigError: For a value out of range.
    """

    above: float
    factor: float = 0.1
    floor: float = 0.01
    recovery: int = 100

    def __post_init__(self) -> None:
        is_norm = is_finite_number(self.above) and self.above > 0
        self._check(is_norm, 'above', 'a number above 0')
        is_share = is_finite_number(self.factor) and 0 < self.factor < 1
        self._check(is_share, 'factor', 'a number between 0 and 1')
        is_below = is_finite_number(self.floor) and (
            0 < self.floor <= self.factor
        )
        self._check(is_below, 'floor', 'a number above 0, at most factor')
        is_long = is_count(self.recovery, least=1)
        self._check(is_long, 'recovery', 'an integer of at least 1')

    def _check(self, is_right: bool, key: str, allowed: str) -> None:
        where = f'optim_wrapper.guard.lr_backoff.{key}'
        check_value(is_right, where, getattr(self, key), allowed)

    def lower(self, factor: float) -> Tuple[float, float]:
        """Return the lowered factor and its growth with each later commit.

        At the floor the factor stays as it is, and the recovery starts anew.
        """
        # After rollbacks the present factor may be below the floor.
        factor = max(self.floor, factor * self.factor)
        return factor, (1 - factor) / self.recovery
