"""The known classes of hand-written NaN guards, and what replaces them."""

import re
from dataclasses import dataclass, field
from typing import Dict, Mapping, Tuple

from .config_value import ConfigDict, ConfigValue

__all__ = [
    'AUTOPSY',
    'FAIL_FAST',
    'FIRST',
    'HOOKS',
    'IN_A_ROW',
    'LATE_STOP',
    'SKIPS',
    'WRAPPERS',
    'HandWritten',
    'guard_options',
    'looks_alike',
    'strictest',
]


@dataclass(frozen=True)
class HandWritten:
    """A hand-written class that the guard replaces.

    Attributes:
        why: The flaw of the class, as a line of the note for the user.
        is_amp: Whether the class is a wrapper for half precision.
        limit: The option of the class that limits how many bad updates it
            tolerates; '' if it has none.
        guard: The options of the guard's policy that act most like the class.
        stops: Whether the class ends the run at the first bad update.
        hooks: The hooks of this package that replace the class's other
            functions.
    """

    why: str
    is_amp: bool = False
    limit: str = ''
    guard: Mapping[str, ConfigValue] = field(default_factory=dict)
    stops: bool = False
    hooks: Tuple[str, ...] = ()


# Texts that several notes share.
IN_A_ROW = 'in a row, and routine overflows are not counted'
AFTER = 'it looks after the update, when the weights may be NaN already'
# The guard's policy that ends the run at the first bad update.
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

# Classes that are recognized by their names. A class that is not in these
# tables is judged by its source, if that is found, and looks_alike() reports
# it otherwise.
WRAPPERS: Dict[str, HandWritten] = {
    'NaNSafeOptimWrapper': HandWritten(SKIPS, limit='max_skips'),
    'DeepRoofSafeOptimWrapper': HandWritten(SKIPS),
    'DeepRoofSafeAmpOptimWrapper': HandWritten(SKIPS, is_amp=True),
    'SafeAmpOptimWrapper': HandWritten(SANITIZE, is_amp=True),
    'FiniteOptimWrapper': HandWritten(FAIL_FAST, guard=FIRST),
    'FailFastAmpOptimWrapper': HandWritten(
        FAIL_FAST, is_amp=True, guard=FIRST
    ),
    # The values of optimizer_config.type in 1.x.
    'SkipNanOptimizerHook': HandWritten(
        'each rank judges its own loss, so that ranks may part',
        limit='max_skips',
    ),
    'NanDetectionHook': HandWritten(AFTER, limit='max_nan_count'),
}

HOOKS: Dict[str, HandWritten] = {
    # The hook of MMDetection.
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
# 'Nan' counts only if no small letter follows: in 'NanHook', but not in
# 'Nanjing'.
ALIKE = re.compile(
    r'[Nn]a[Nn](?![a-z])|NAN|[Nn]on_?[Ff]inite|InvalidLoss|[Aa]nomal'
)
AUTOPSY = {'type': 'mmnanguard.AutopsyHook'}


def looks_alike(name: str) -> bool:
    """Whether an unknown class has the name of a hand-written guard."""
    return not name.startswith('NanGuard') and bool(ALIKE.search(name))


def guard_options(
    hand: HandWritten, options: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Return the guard's options that act most like a hand-written class."""
    limit = options.get(hand.limit)
    if limit is None:
        return dict(hand.guard)
    # -1 stands for no limit in these classes. The limit of the guard's skip
    # rate is lifted as well, because it would still end the run.
    if limit < 0:
        return {'max_consecutive_skips': None, 'max_skip_rate': None}
    # The guard refuses 0: a run ends at the first bad update at the earliest.
    return {'max_consecutive_skips': max(1, limit)}


def strictest(
    first: Mapping[str, ConfigValue], second: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Merge the policies of two guards, either of which ends the run."""
    key = 'max_consecutive_skips'
    merged = {**first, **second}
    limits = []
    for guard in (first, second):
        if guard.get(key) is not None:
            limits.append(guard[key])
    if not limits:
        return merged
    merged[key] = min(limits)
    # None lifts a limit. One of the guards has a limit, so no limit is lifted:
    # the guard's default applies instead.
    for name in list(merged):
        if merged[name] is None:
            del merged[name]
    return merged
