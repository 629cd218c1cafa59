"""Ring 1: facts, rules and records; the standard library only.

Everything here is a frozen record or a pure function. Read in this order:

1. ``errors``, ``checks``: the errors, and the checks of config values.
2. ``causes``: the table of all causes and everything that depends on them.
3. ``rules``: the judgement of one update.
4. ``clipping``: rules that turn a gradient norm into a coefficient.
5. ``bad_tensor``, ``rows``: the rows of ``events.jsonl``.
6. ``evidence``, ``culprit``, ``diagnosis``: what rejected updates have in
   common, and what to do about it. ``operation_advice``, ``growth_advice``
   and ``step_advice`` know what helps, ``undefined_operations`` why an
   operation went bad.
7. ``launch``, ``older_checkpoint``, ``how_to_guard``: the commands and
   settings that a message hands out.
8. ``halted``: the exceptions that end a run.
9. ``hook_source``: which hooks of a user end a run by themselves.
"""

from .bad_tensor import BadTensor
from .causes import Cause
from .clipping.clip_rule import ClipRule, NoClip, NormClip
from .clipping.rules import AutoClip, TieredClip, ZClip
from .errors import GuardConfigError, NanGuardError
from .halted import RollbackUnavailable, TrainingHalted
from .rows.autopsy import Autopsy
from .rows.guard_event import GuardEvent
from .rules.decide import decide, find_cause
from .rules.divergence import Divergence, LossLevel
from .rules.lr_backoff import LrBackoff
from .rules.observation import LeftOut, Observation, ScaleReading, Shard
from .rules.policy import GuardPolicy
from .rules.spike import Spike, SpikePolicy
from .rules.state import GuardState
from .rules.verdict import Action, ScaleMove, Verdict

__all__ = [
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
    'decide',
    'find_cause',
]
