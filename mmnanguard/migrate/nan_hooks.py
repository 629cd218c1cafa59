"""NaN guards that people wrote by hand, as far as their names are known."""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Tuple

__all__ = [
    'AUTOPSY',
    'HOOKS',
    'IN_A_ROW',
    'WRAPPERS',
    'HandWritten',
    'guard_options',
    'looks_alike',
    'strictest',
]


@dataclass(frozen=True)
class HandWritten:
    """A class that a guard takes the place of.

    Attributes:
        why: What it does not protect, in one line.
        is_amp: A wrapper's precision.
        limit: The option that says how many bad updates it bears.
        guard: What of the guard's policy comes nearest to it.
        stops: Does it end the run at the first?
        hooks: Hooks of this package that do what else it does.
    """

    why: str
    is_amp: bool = False
    limit: str = ''
    guard: Mapping[str, Any] = field(default_factory=dict)
    stops: bool = False
    hooks: Tuple[str, ...] = ()


IN_A_ROW = 'in a row, and routine overflows are not counted'
AFTER = 'it looks after the update, when the weights may be NaN already'
FIRST = {'max_consecutive_skips': 1}
LATE_STOP = HandWritten(AFTER, stops=True)
SKIPS = (
    'it skips the step alone: BatchNorm statistics and averages keep the NaN'
)
FAIL_FAST = 'it ends the run where skipping one update would do'
SANITIZE = (
    'it zeroes gradients after the scaler has seen them: the step is left '
    'out anyway, and nobody is named'
)

WRAPPERS: Dict[str, HandWritten] = {
    'NaNSafeOptimWrapper': HandWritten(SKIPS, limit='max_skips'),
    'DeepRoofSafeOptimWrapper': HandWritten(SKIPS),
    'DeepRoofSafeAmpOptimWrapper': HandWritten(SKIPS, is_amp=True),
    'SafeAmpOptimWrapper': HandWritten(SANITIZE, is_amp=True),
    'FiniteOptimWrapper': HandWritten(FAIL_FAST, guard=FIRST),
    'FailFastAmpOptimWrapper': HandWritten(
        FAIL_FAST, is_amp=True, guard=FIRST
    ),
    # Of 1.x: optimizer_config.type.
    'SkipNanOptimizerHook': HandWritten(
        'each rank judges its own loss, so that ranks may part',
        limit='max_skips',
    ),
    'NanDetectionHook': HandWritten(AFTER, limit='max_nan_count'),
}

HOOKS: Dict[str, HandWritten] = {
    'CheckInvalidLossHook': HandWritten(
        f'{AFTER}, and at one iteration in `interval`', stops=True
    ),
    'CheckIsfiniteHook': LATE_STOP,
    'StopLossNanTrainingHook': LATE_STOP,
    'EarlyStopOnNanHook': LATE_STOP,
    'NaNDetectionHook': HandWritten(AFTER, limit='max_nan_count'),
    'NanDetectionHook': HandWritten(AFTER, limit='max_nan_count'),
    'CheckNanHook': HandWritten(AFTER),
    'NanCheckHook': HandWritten(AFTER),
    'NanRecoveryHook': HandWritten(
        'it overwrites the loss in the log; the weights are NaN already',
        limit='max_consecutive_nans',
    ),
    'SkipInvalidLossHook': HandWritten(
        'a hook cannot veto an update: what it returns is not read',
        limit='max_consecutive_nans',
    ),
    'SkipBadSamplesHook': HandWritten(
        'a hook cannot veto an update: what it returns is not read',
        limit='max_consecutive_nans',
    ),
    'FirstNonFiniteHook': HandWritten(AFTER, hooks=('autopsy',)),
    'DetectAnomalyHook': HandWritten(
        "autograd's anomaly mode raises before a scaler can skip, and sees "
        'neither Inf nor a NaN that forward made',
        hooks=('autopsy',),
    ),
    'LossScaleInfoHook': HandWritten(
        'NanGuardHook writes train/guard/amp_scale'
    ),
}
ALIKE = re.compile(
    r'[Nn]a[Nn](?![a-z])|NAN|[Nn]on_?[Ff]inite|InvalidLoss|[Aa]nomal'
)
AUTOPSY = {'type': 'mmnanguard.AutopsyHook'}


def looks_alike(name: str) -> bool:
    """Does a class that is not known sound like one of them?"""
    own = name.startswith('NanGuard')
    return not own and bool(ALIKE.search(name))


def guard_options(
    hand: HandWritten, options: Mapping[str, Any]
) -> Dict[str, Any]:
    """Of ``optim_wrapper.guard``."""
    limit = options.get(hand.limit) if hand.limit else None
    if limit is None:
        return dict(hand.guard)
    if limit < 0:  # bears everything
        return {'max_consecutive_skips': None, 'max_skip_rate': None}
    return {'max_consecutive_skips': max(1, limit)}


def strictest(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> Dict[str, Any]:
    """Of two guards, either of which would have ended the run."""
    key = 'max_consecutive_skips'
    limits = [g[key] for g in (one, other) if g.get(key) is not None]
    if not limits:
        return {**one, **other}
    rest = {**one, **other, key: min(limits)}
    return {k: v for k, v in rest.items() if v is not None}
