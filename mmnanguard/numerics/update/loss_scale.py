"""A GradScaler whose scale is moved by verdicts."""

import math
import warnings
from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.core import (
    Action,
    GuardConfigError,
    ScaleMove,
    ScaleReading,
    Verdict,
)
from mmnanguard.core.checks import check_keys, is_count

from .grad_scaler import GradScaler, OptState

__all__ = ['GuardedGradScaler']

WHERE = 'optim_wrapper.loss_scale'
COUNT = 'an integer of at least 1'
is_positive_count = partial(is_count, least=1)
POSITIVE = 'above 0 and finite in float32'
FLOAT32_MAX = torch.finfo(torch.float32).max
# Enough for a loss that is the sum over a few million pixels.
LOWEST = 2.0**-16
KEYS = (
    'init_scale',
    'growth_factor',
    'backoff_factor',
    'growth_interval',
    'hysteresis',
    'min_scale',
    'max_scale',
    'enabled',
)


class GuardedGradScaler(GradScaler):
    """A GradScaler whose scale moves by verdict and stays within bounds.

    The scale is known on the host, because only :meth:`move` changes it, so
    reading it does not sync the device. It can load the ``state_dict`` of
    PyTorch's scaler, and PyTorch's scaler can load its.

    PyTorch's own scaler has no floor. After some 150 overflows in a row the
    scale is so small that a clean gradient unscales to Inf, and the check
    for Inf runs before the division
    (https://github.com/pytorch/pytorch/issues/99640).

    Args:
        device: The type of the device that holds the gradients.
        init_scale: The first scale.
        growth_factor: The factor of a growth, above 1.
        backoff_factor: The factor of a reduction, in (0, 1).
        growth_interval: Number of commits in a row after which the scale
            grows.
        hysteresis: Number of overflows, without a commit between them, after
            which the scale is lowered.
        min_scale: The lowest scale, inclusive.
        max_scale: The highest scale, inclusive; None means that of float32.
        enabled: Whether to scale; if not, the scale is always 1.

    Attributes:
        home: The scale that a number in the config stands for, or None.
        growth_is_due: Whether the scale grows with the next commit; None if
            the commits counted here decide.

    Raises:
        GuardConfigError: If a value is out of range.
    """

    def __init__(
        self,
        device: str = 'cuda',
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        hysteresis: int = 1,
        min_scale: float = LOWEST,
        max_scale: Optional[float] = None,
        enabled: bool = True,
    ) -> None:
        _check('growth_factor', growth_factor, lambda v: v > 1, 'above 1')
        _check(
            'backoff_factor', backoff_factor, lambda v: 0 < v < 1, 'in (0, 1)'
        )
        _check('growth_interval', growth_interval, is_positive_count, COUNT)
        _check('hysteresis', hysteresis, is_positive_count, COUNT)
        _check('min_scale', min_scale, lambda v: v > 0, POSITIVE)
        _check('init_scale', init_scale, lambda v: v > 0, POSITIVE)
        if max_scale is None:
            max_scale = max(init_scale, 2.0**126)
        _check('max_scale', max_scale, lambda v: v > 0, f'{POSITIVE}, or None')
        _check(
            'init_scale',
            init_scale,
            lambda v: min_scale <= v <= max_scale,
            f'within [min_scale={min_scale}, max_scale={max_scale}]',
        )
        super().__init__(
            device=device,
            init_scale=float(init_scale),
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
            enabled=enabled,
        )
        self.min_scale = float(min_scale)
        self.max_scale = float(max_scale)
        self.hysteresis = hysteresis
        self.home: Optional[float] = None
        self.growth_is_due: Optional[bool] = None
        self._first_value = float(init_scale)
        # PyTorch disables the scaler of a device that does not exist.
        self._value = float(init_scale) if self.is_enabled() else 1.0
        self._num_clean = 0
        self._num_overflows = 0

    @classmethod
    def from_config(
        cls, loss_scale: Union[str, float, Dict[str, Any]], device: str
    ) -> 'GuardedGradScaler':
        """Build a scaler from MMEngine's ``loss_scale`` key.

        Args:
            loss_scale: 'dynamic', a dict of the arguments above, or a number,
                which is the first and the highest scale.
            device: The type of the device that holds the gradients.

        Raises:
            GuardConfigError: If ``loss_scale`` is not valid.
        """
        if loss_scale == 'dynamic':
            return cls(device)
        if isinstance(loss_scale, dict):
            check_keys(loss_scale, KEYS, WHERE)
            return cls(device, **loss_scale)
        if isinstance(loss_scale, (int, float)) and not isinstance(
            loss_scale, bool
        ):
            _check('a number', loss_scale, lambda v: v > 0, POSITIVE)
            # The user may ask for a scale below 1, which then is the floor.
            scaler = cls(
                device,
                init_scale=loss_scale,
                min_scale=min(1.0, loss_scale),
                max_scale=loss_scale,
            )
            # A user who gave a number expects the scale to come back to it.
            scaler.home = scaler.max_scale
            return scaler
        raise GuardConfigError(
            f"{WHERE} is {loss_scale!r}: it must be a number, 'dynamic', or "
            f'a dict with keys of {", ".join(KEYS)}.'
        )

    def read(self, optimizer: Optional[Optimizer] = None) -> ScaleReading:
        """Return the facts that a verdict needs; no sync.

        Args:
            optimizer: The optimizer for which :meth:`unscale_` may have been
                called.
        """
        if not self.is_enabled():
            return ScaleReading()
        record = self._per_optimizer_states.get(id(optimizer), {})
        growth_is_due = self.growth_is_due
        if growth_is_due is None:
            interval = self.get_growth_interval()
            growth_is_due = self._num_clean + 1 >= interval
        return ScaleReading(
            value=self._value,
            floor=self.min_scale,
            lower_is_due=(
                self._value > self.min_scale
                and self._num_overflows + 1 >= self.hysteresis
            ),
            growth_is_due=growth_is_due and self._value < self.max_scale,
            is_unscaled=record.get('stage') is OptState.UNSCALED,
            home=self.home,
            backoff=self.get_backoff_factor(),
        )

    def move(self, verdict: Verdict) -> Tuple[float, float]:
        """Move the scale as a verdict says; no sync.

        A commit counts towards growth, an overflow restarts that count, and
        an update that is rejected for another reason leaves it unchanged.

        Returns:
            The scale before and after.
        """
        before = self._value
        if not self.is_enabled():
            return before, before
        # The cause of a commit may be an overflow that was left out.
        if verdict.cause.is_scaled and verdict.blames_scale:
            self._num_clean = 0
            self._num_overflows += 1
        elif verdict.action is Action.STEP:
            # At the highest scale the count restarts, too, as in PyTorch.
            self._num_clean = (
                self._num_clean + 1
            ) % self.get_growth_interval()
            self._num_overflows = 0
        if verdict.scale_to is not None:
            self.jump(verdict.scale_to)
        elif verdict.scale_move is ScaleMove.GROW:
            self._set(min(before * self.get_growth_factor(), self.max_scale))
        elif verdict.scale_move is ScaleMove.LOWER:
            self._set(max(before * self.get_backoff_factor(), self.min_scale))
            self._num_overflows = 0
        # PyTorch's record of a user's own unscale_ in this iteration.
        self._per_optimizer_states.clear()
        return before, self._value

    def jump(self, value: float) -> None:
        """Set the scale to a value, or to the bound next to it; no sync."""
        if self.is_enabled():
            self._set(min(max(value, self.min_scale), self.max_scale))

    def raise_to(self, value: float) -> None:
        """Raise the scale to a value within ``max_scale``; no sync.

        A scale that the user gave as a number has no other bound than itself;
        this bound is raised as well.
        """
        if self.home is not None:
            self.max_scale = max(self.max_scale, min(value, 2.0**126))
            self.home = self.max_scale
        if value > self._value:
            self.jump(value)

    def get_scale(self) -> float:
        """Return the current scale; unlike PyTorch's, without a sync."""
        return self._value

    def update(self, new_scale: Union[float, Tensor, None] = None) -> None:
        """Update the scale as PyTorch does. Syncs the device.

        Only code that drives the scaler by hand calls this.
        """
        super().update(new_scale)
        if self.is_enabled():
            self._value = super().get_scale()

    def state_dict(self) -> Dict[str, Any]:
        """Return the state in PyTorch's keys; no sync.

        With hysteresis there is one key more, the count of overflows.
        """
        if not self.is_enabled():
            return {}
        state: Dict[str, Any] = {
            'scale': self._value,
            'growth_factor': self.get_growth_factor(),
            'backoff_factor': self.get_backoff_factor(),
            'growth_interval': self.get_growth_interval(),
            '_growth_tracker': self._num_clean,
        }
        if self.hysteresis > 1:
            state['_overflow_tracker'] = self._num_overflows
        return state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the scale, but not factors, interval and bounds.

        An unusable scale is repaired with a warning. The empty state of a
        disabled scaler is ignored.
        """
        if not self.is_enabled() or not state_dict:
            return
        saved = float(state_dict['scale'])
        if math.isfinite(saved) and saved > 0:
            scale = min(max(saved, self.min_scale), self.max_scale)
        else:
            scale = self._first_value
        if scale != saved:
            warnings.warn(
                f'the checkpoint holds a loss scale of {saved:g}, allowed '
                f'are [{self.min_scale:g}, {self.max_scale:g}]: going on '
                f'with {scale:g}. Bounds are set by {WHERE}='
                'dict(min_scale=..., max_scale=...).',
                RuntimeWarning,
                stacklevel=2,
            )
        self._set(scale)
        self._num_clean = int(state_dict.get('_growth_tracker', 0))
        self._num_overflows = int(state_dict.get('_overflow_tracker', 0))

    def _set(self, value: float) -> None:
        self._value = value
        self._init_scale = value  # PyTorch makes the tensor from it
        if self._scale is not None:
            self._scale.fill_(value)


def _check(
    key: str, value: Any, is_good: Callable[[Any], bool], allowed: str
) -> None:
    """Refuse a value that is no number, too large or not ``is_good``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and abs(value) <= FLOAT32_MAX and is_good(value)):
        raise GuardConfigError(
            f'{WHERE}: {key} is {value!r}, it must be {allowed}.'
        )
