"""Ring 1: facts, rules and records; the standard library only."""

from .autopsy import Autopsy
from .clip_rules import NoClip, NormClip
from .decide import decide
from .errors import GuardConfigError, NanGuardError, TrainingHalted, check_keys
from .event import BadTensor, GuardEvent, to_json
from .halt_story import tell_halt
from .observation import NORM_LIMIT, Observation, ScaleReading, Shard
from .policy import GuardPolicy
from .smallest_subset import smallest_subset
from .state import GuardState
from .verdict import Action, Cause, ScaleMove, Verdict

__all__ = [
    'NORM_LIMIT',
    'Action',
    'Autopsy',
    'BadTensor',
    'Cause',
    'GuardConfigError',
    'GuardEvent',
    'GuardPolicy',
    'GuardState',
    'NanGuardError',
    'NoClip',
    'NormClip',
    'Observation',
    'ScaleMove',
    'ScaleReading',
    'Shard',
    'TrainingHalted',
    'Verdict',
    'check_keys',
    'decide',
    'smallest_subset',
    'tell_halt',
    'to_json',
]
