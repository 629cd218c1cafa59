from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from ..checks import check_keys, check_value, is_count, is_number
from ..errors import GuardConfigError
from .divergence import Divergence
from .lr_backoff import LrBackoff
from .spike import SpikePolicy

__all__ = ['GuardPolicy']

WHERE = 'optim_wrapper.guard'
NESTED = {
    'spike': SpikePolicy,
    'lr_backoff': LrBackoff,
    'divergence': Divergence,
}


@dataclass(frozen=True)
class GuardPolicy:
    """The rules, from ``optim_wrapper.guard=dict(...)``.

    Routine overflows of the loss scale are never counted as skips.

    Attributes:
        max_consecutive_skips: The run halts at this many skips in a row,
            inclusive; None means no limit.
        max_skip_rate: The run halts when more than this share, exclusive, of
            the last ``skip_rate_window`` updates were skipped. A window of
            nothing but skips is one streak, which ``max_consecutive_skips``
            judges. None means no limit.
        skip_rate_window: Number of updates; judged once that many were seen.
        proven_after: A loss scale that this many commits were made at, or
            above, since it started or last grew, is proven: an overflow at a
            proven scale is an anomaly, below that it is routine.
        when_exhausted: What happens at a limit, where weights are bad, or
            where the run diverges: 'halt', or 'rollback', which takes a
            ``RollbackHook``.
        accumulation: What is rejected when a micro-batch is bad: the
            'window', or that 'microbatch', if there are others.
        spike: See :class:`SpikePolicy`; None judges no spikes.
        lr_backoff: See :class:`LrBackoff`; None leaves learning rates alone.
        divergence: See :class:`Divergence`; None judges none.
    """

    max_consecutive_skips: Optional[int] = 20
    max_skip_rate: Optional[float] = 0.5
    skip_rate_window: int = 200
    proven_after: int = 100
    when_exhausted: str = 'halt'
    accumulation: str = 'window'
    spike: Optional[SpikePolicy] = None
    lr_backoff: Optional[LrBackoff] = None
    divergence: Optional[Divergence] = None

    def __post_init__(self) -> None:
        _check_count('max_consecutive_skips', self.max_consecutive_skips, 1)
        _check_count('skip_rate_window', self.skip_rate_window, 1)
        _check_count('proven_after', self.proven_after, 0)
        if self.skip_rate_window is None or self.proven_after is None:
            raise GuardConfigError(
                f'{WHERE}: skip_rate_window and proven_after must be '
                'integers; to switch a limit off, set '
                'max_consecutive_skips=None or max_skip_rate=None.'
            )
        rate = self.max_skip_rate
        check_value(
            rate is None or (is_number(rate) and 0 <= rate < 1),
            f'{WHERE}.max_skip_rate',
            rate,
            'a share in [0, 1), or None for no limit',
        )
        _check_choice(
            'when_exhausted', self.when_exhausted, ('halt', 'rollback')
        )
        _check_choice(
            'accumulation', self.accumulation, ('window', 'microbatch')
        )

    @classmethod
    def from_config(cls, config: Optional[Mapping[str, Any]]) -> 'GuardPolicy':
        """Check and freeze a config dict; None gives the defaults.

        Raises:
            GuardConfigError: For an unknown key (it names the nearest valid
                one) or a value out of range.
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise GuardConfigError(
                f'{WHERE} is {config!r}: it must be a dict such as '
                'dict(max_consecutive_skips=50).'
            )
        check_keys(config, (field.name for field in fields(cls)), WHERE)
        nested = {
            key: build(key, kind, config[key])
            for key, kind in NESTED.items()
            if config.get(key) is not None
        }
        return cls(**{**config, **nested})

    def windows(self) -> Dict[str, int]:
        """How much a state remembers, as ``GuardState.from_dict`` takes it."""
        return {
            'skip_rate_window': self.skip_rate_window,
            'spike_window': self.spike.window if self.spike else 0,
            'loss_window': self.divergence.window if self.divergence else 0,
        }

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


def build(key: str, kind: Any, config: Any) -> Any:
    """A part of the policy that is a dict of its own."""
    where = f'{WHERE}.{key}'
    if not isinstance(config, Mapping):
        raise GuardConfigError(
            f'{where} is {config!r}: it must be None or a dict.'
        )
    check_keys(config, (field.name for field in fields(kind)), where)
    missing = [
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.name not in config
    ]
    if missing:
        raise GuardConfigError(f'{where} lacks {missing[0]}=...')
    return kind(**config)


def _check_count(key: str, value: Any, least: int) -> None:
    is_right = value is None or is_count(value, least)
    allowed = f'an integer of at least {least}'
    check_value(is_right, f'{WHERE}.{key}', value, allowed)


def _check_choice(key: str, value: Any, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise GuardConfigError(
            f'{WHERE}.{key} is {value!r}: this version knows '
            f'{", ".join(map(repr, choices))}.'
        )
