import math
import warnings
from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple, Union

import torch
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

    The scale is known on the host, because only :meth:`move` changes it: no
    reading of it syncs the device. Its ``state_dict`` and PyTorch's load into
    each other.

    PyTorch's own scaler has no floor: after some 150 overflows in a row the
    scale is so small that a clean gradient unscales to Inf, which its check,
    made before the division, does not see (pytorch issue 99640).

    Args:
        device: Type of the device that holds the gradients.
        init_scale: First value of the scale.
        growth_factor: Above 1.
        backoff_factor: In (0, 1).
        growth_interval: Commits in a row after which the scale grows.
        hysteresis: Overflows in a row, without a commit between them, that
            it takes to lower the scale.
        min_scale: Floor, inclusive.
        max_scale: Ceiling, inclusive; None means that of float32.
        enabled: False gives a scale of 1 that never moves.

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
        min_scale: float = 1.0,
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
        self._first_value = float(init_scale)
        # PyTorch disables one for a device that is not there.
        self._value = float(init_scale) if self.is_enabled() else 1.0
        self._num_clean = 0
        self._num_overflows = 0

    @classmethod
    def from_config(
        cls, loss_scale: Union[str, float, Dict[str, Any]], device: str
    ) -> 'GuardedGradScaler':
        """MMEngine's ``loss_scale`` key, with ints and a floor.

        Args:
            loss_scale: 'dynamic'; a number, at which the scale starts and
                which it never passes; or a dict of the arguments above.
            device: Type of the device that holds the gradients.

        Raises:
            GuardConfigError: If it is none of these.
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
            # A scale below 1 is its own floor: the user asked for it.
            return cls(
                device,
                init_scale=loss_scale,
                min_scale=min(1.0, loss_scale),
                max_scale=loss_scale,
            )
        raise GuardConfigError(
            f"{WHERE} is {loss_scale!r}: it must be a number, 'dynamic', or "
            f'a dict with keys of {", ".join(KEYS)}.'
        )

    def read(self, optimizer: Optional[Optimizer] = None) -> ScaleReading:
        """The facts that a verdict needs; no sync.

        Args:
            optimizer: To know whether :meth:`unscale_` was called for it.
        """
        if not self.is_enabled():
            return ScaleReading()
        record = self._per_optimizer_states.get(id(optimizer), {})
        return ScaleReading(
            value=self._value,
            floor=self.min_scale,
            lower_is_due=(
                self._value > self.min_scale
                and self._num_overflows + 1 >= self.hysteresis
            ),
            growth_is_due=(
                self._value < self.max_scale
                and self._num_clean + 1 >= self.get_growth_interval()
            ),
            is_unscaled=record.get('stage') is OptState.UNSCALED,
        )

    def move(self, verdict: Verdict) -> Tuple[float, float]:
        """Carry out a verdict; no sync.

        A commit counts towards growth, an overflow starts that count anew,
        and an update rejected for another reason leaves it as it was.

        Returns:
            The scale before and after.
        """
        before = self._value
        if not self.is_enabled():
            return before, before
        if verdict.cause.is_scaled:  # also of what a commit left out
            self._num_clean = 0
            self._num_overflows += 1
        elif verdict.action is Action.STEP:
            # At the ceiling, too, each interval begins anew, as in PyTorch.
            self._num_clean = (
                self._num_clean + 1
            ) % self.get_growth_interval()
            self._num_overflows = 0
        if verdict.scale_move is ScaleMove.GROW:
            self._set(min(before * self.get_growth_factor(), self.max_scale))
        elif verdict.scale_move is ScaleMove.LOWER:
            self._set(max(before * self.get_backoff_factor(), self.min_scale))
            self._num_overflows = 0
        # PyTorch's record of this iteration (a user's own unscale_).
        self._per_optimizer_states.clear()
        return before, self._value

    def get_scale(self) -> float:
        """The current scale; unlike PyTorch's this does not sync."""
        return self._value

    def update(self, new_scale: Any = None) -> None:
        """For code that drives the scaler by hand; syncs the device."""
        super().update(new_scale)
        if self.is_enabled():
            self._value = super().get_scale()

    def state_dict(self) -> Dict[str, Any]:
        """The keys of PyTorch's scaler, and with hysteresis its count; from
        the host: no sync.
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
        """Take over the scale; factors, interval and bounds stay as
        configured. A scale that cannot be used is repaired with a warning;
        an empty state (a disabled scaler's) is ignored.
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
        self._init_scale = value  # what the tensor is made from when needed
        if self._scale is not None:
            self._scale.fill_(value)


def _check(
    key: str, value: Any, is_good: Callable[[Any], bool], allowed: str
) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and abs(value) <= FLOAT32_MAX and is_good(value)):
        raise GuardConfigError(
            f'{WHERE}: {key} is {value!r}, it must be {allowed}.'
        )
