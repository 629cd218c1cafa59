"""The rules that a user sets in ``optim_wrapper.guard``."""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from ..checks import check_keys, check_value, is_count, is_number
from ..errors import GuardConfigError
from .divergence import Divergence
from .lr_backoff import LrBackoff
from .spike import SpikePolicy

__all__ = ['GuardPolicy']

WHERE = 'optim_wrapper.guard'
DEFAULT_SKIP_RATE = 0.5
Rule = Union[SpikePolicy, LrBackoff, Divergence]
# The keys whose value is a dict, and the class that the dict becomes.
NESTED: Dict[str, Type[Rule]] = {
    'spike': SpikePolicy,
    'lr_backoff': LrBackoff,
    'divergence': Divergence,
}


@dataclass(frozen=True)
class GuardPolicy:
    """The rules of a guard, from ``optim_wrapper.guard=dict(...)``.

    Routine overflows of the loss scale never count as skips.

    Attributes:
        max_consecutive_skips: The run halts at this number of skips in a
            row, inclusive. None means no limit.
        max_skip_rate: The run halts when the share of skips among the last
            ``skip_rate_window`` updates is above this limit, exclusive. A
            window of skips only is one streak, which
            ``max_consecutive_skips`` judges. None means no limit. With a loss
            scale, bad gradients end a run at the default of 0.5 only if it
            has exploded: MMEngine's scaler skips them, too.
        skip_rate_window: The number of updates in the share of
            ``max_skip_rate``, which is judged once there are that many.
        proven_after: A loss scale is proven after this number of commits at
            the scale or above it, counted since the scale started or last
            grew. An overflow at a proven scale is an anomaly; an overflow at
            any other scale is routine.
        when_exhausted: The action at a limit, when weights are bad, or when
            the run diverges: 'halt', or 'rollback', which needs a
            ``RollbackHook``.
        accumulation: The part that a bad micro-batch costs: the whole
            'window', or only the 'microbatch' if the window also has good
            micro-batches.
        check_step: When the result of the optimizer's step is checked, and
            undone if it is not finite: in the first commits after 'start',
            resume or change of optimizer, 'always', or 'never'. Steps on
            gradients with a norm above 1e9 are checked as well, except with
            'never'. A checked step costs a copy of weights and optimizer
            state and one more host read.
        spike: See :class:`SpikePolicy`. None switches the rule off.
        lr_backoff: See :class:`LrBackoff`. None leaves learning rates alone.
        divergence: See :class:`Divergence`. None switches the rule off.
    """

    max_consecutive_skips: Optional[int] = 20
    max_skip_rate: Optional[float] = DEFAULT_SKIP_RATE
    skip_rate_window: int = 200
    proven_after: int = 100
    when_exhausted: str = 'halt'
    accumulation: str = 'window'
    check_step: str = 'start'
    spike: Optional[SpikePolicy] = None
    lr_backoff: Optional[LrBackoff] = None
    divergence: Optional[Divergence] = None

    def __post_init__(self) -> None:
        _check_count('max_consecutive_skips', self.max_consecutive_skips, 1)
        _check_count('skip_rate_window', self.skip_rate_window, 1)
        _check_count('proven_after', self.proven_after, 0)
        # _check_count lets None pass, but these two counts must be integers.
        if self.skip_rate_window is None or self.proven_after is None:
            raise GuardConfigError(
                f'{WHERE}: skip_rate_window and proven_after must be '
                'integers; to switch a limit off, set '
                'max_consecutive_skips=None or max_skip_rate=None.'
            )
        # A share of 1 could never be exceeded.
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
        _check_choice(
            'check_step', self.check_step, ('start', 'always', 'never')
        )

    @classmethod
    def from_config(cls, config: Optional[Mapping[str, Any]]) -> 'GuardPolicy':
        """Return the policy of a config dict; None gives the defaults.

        Raises:
            GuardConfigError: For an unknown key (the error names the nearest
                valid key) or a value out of range.
        """
        # guard=None in a config undoes the guard=dict(...) of its parent.
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise GuardConfigError(
                f'{WHERE} is {config!r}: it must be a dict such as '
                'dict(max_consecutive_skips=50).'
            )
        check_keys(config, field_names(cls), WHERE)
        rules: Dict[str, Rule] = {}
        for key, kind in NESTED.items():
            if config.get(key) is not None:
                rules[key] = build(key, kind, config[key])
        return cls(**{**config, **rules})

    @property
    def has_own_skip_rate(self) -> bool:
        """Whether the user has chosen another ``max_skip_rate``."""
        return self.max_skip_rate != DEFAULT_SKIP_RATE

    def windows(self) -> Dict[str, int]:
        """Return the arguments of ``GuardState.from_dict`` by name."""
        windows = {'skip_rate_window': self.skip_rate_window}
        # A rule that is off needs no memory.
        windows['spike_window'] = 0
        windows['loss_window'] = 0
        if self.spike is not None:
            windows['spike_window'] = self.spike.window
        if self.divergence is not None:
            windows['loss_window'] = self.divergence.window
        return windows

    def for_several(self) -> 'GuardPolicy':
        """Return the policy of one of several optimizers."""
        if self.divergence is None:
            return self
        rule = replace(self.divergence, needs_norms=True)
        return replace(self, divergence=rule)

    def to_dict(self) -> Dict[str, Any]:
        """Return the policy as a config dict."""
        return asdict(self)


def build(key: str, kind: Type[Rule], config: object) -> Rule:
    """Build the rule of a nested dict, such as ``guard.spike``.

    Raises:
        GuardConfigError: If ``config`` is no dict, has an unknown key or
            lacks a key that is needed.
    """
    where = f'{WHERE}.{key}'
    if not isinstance(config, Mapping):
        raise GuardConfigError(
            f'{where} is {config!r}: it must be None or a dict.'
        )
    check_keys(config, field_names(kind), where)
    # The TypeError of the constructor would not name the key of the config.
    for field in fields(kind):
        if field.default is MISSING and field.name not in config:
            raise GuardConfigError(f'{where} lacks {field.name}=...')
    return kind(**config)


def field_names(kind: Type[object]) -> List[str]:
    """Return the keys that the config of a dataclass may have."""
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


def _check_count(key: str, value: object, least: int) -> None:
    is_right = value is None or is_count(value, least)
    allowed = f'an integer of at least {least}'
    check_value(is_right, f'{WHERE}.{key}', value, allowed)


def _check_choice(key: str, value: str, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise GuardConfigError(
            f'{WHERE}.{key} is {value!r}: this version knows '
            f'{", ".join(map(repr, choices))}.'
        )
