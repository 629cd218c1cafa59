"""Ring 1: facts, rules and records; the standard library only."""

from .autopsy import Autopsy
from .bad_tensor import BadTensor
from .clip_rules import AutoClip, ClipRule, NoClip, NormClip, TieredClip, ZClip
from .dataset_parts import dataset_parts
from .decide import decide, find_cause
from .divergence import Divergence, LossLevel
from .errors import (
    GuardConfigError,
    NanGuardError,
    RollbackUnavailable,
    TrainingHalted,
    check_keys,
    check_value,
    is_count,
    is_finite_number,
    meant,
)
from .event import GuardEvent, to_json
from .halt_story import tell_halt
from .lr_backoff import LrBackoff
from .observation import NORM_LIMIT, LeftOut, Observation, ScaleReading, Shard
from .policy import GuardPolicy
from .report import report
from .sample_name import sample_name
from .smallest_subset import smallest_subset
from .spike import Spike, SpikePolicy
from .stack import check_stack
from .state import GuardState
from .verdict import Action, Cause, ScaleMove, Verdict
from .written_aside import written_aside

__all__ = [
    'NORM_LIMIT',
    'Action',
    'AutoClip',
    'Autopsy',
    'BadTensor',
    'Cause',
    'ClipRule',
    'Divergence',
    'GuardConfigError',
    'GuardEvent',
    'GuardPolicy',
    'GuardState',
    'LeftOut',
    'LossLevel',
    'LrBackoff',
    'NanGuardError',
    'NoClip',
    'NormClip',
    'Observation',
    'RollbackUnavailable',
    'ScaleMove',
    'ScaleReading',
    'Shard',
    'Spike',
    'SpikePolicy',
    'TieredClip',
    'TrainingHalted',
    'Verdict',
    'ZClip',
    'check_keys',
    'check_stack',
    'check_value',
    'dataset_parts',
    'decide',
    'find_cause',
    'is_count',
    'is_finite_number',
    'meant',
    'report',
    'sample_name',
    'smallest_subset',
    'tell_halt',
    'to_json',
    'written_aside',
]
