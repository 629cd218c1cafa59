"""Ring 3, the hooks around the iteration: one consequence in each room.

- ``guard``: ``NanGuardHook`` logs what the guard decided and hands it out.
- ``events``: ``EventLogHook`` and ``EventTextHook`` write it down.
- ``inputs``: ``InputGuardHook`` and ``BadSamplesHook`` check the data.
- ``replay``: ``AutopsyHook``, ``BatchDumpHook`` and ``Fp32ModulesHook``
  examine and repeat an update.
- ``recovery``: ``StateAuditHook`` and ``RollbackHook`` keep and restore a
  clean state; ``LrFactorHook`` goes on at other learning rates.
- ``stability``: ``StabilityMonitorHook`` warns before an update goes bad.
- ``drill``: ``FaultInjectionHook`` plants faults.
- ``_shared``: modules that several rooms use.
"""

# Importing a hook registers it. All of them are imported here, because a
# config names a hook by its type and never imports its module.
from ._shared.audit import Audit
from ._shared.guard_listener import GuardListener
from .drill.fault_injection_hook import FaultInjectionHook
from .events.event_log_hook import EventLogHook
from .events.event_text_hook import EventTextHook
from .guard.nan_guard_hook import NanGuardHook
from .inputs.bad_samples_hook import BadSamplesHook
from .inputs.input_guard_hook import InputGuardHook
from .recovery.choose_resume import choose_resume
from .recovery.lr_factor_hook import LrFactorHook
from .recovery.rollback_hook import RollbackHook
from .recovery.state_audit_hook import StateAuditHook
from .replay.autopsy_hook import AutopsyHook
from .replay.batch_dump_hook import BatchDumpHook
from .replay.fp32_modules_hook import Fp32ModulesHook
from .stability.stability_monitor_hook import StabilityMonitorHook

__all__ = [
    'Audit',
    'AutopsyHook',
    'BadSamplesHook',
    'BatchDumpHook',
    'EventLogHook',
    'EventTextHook',
    'FaultInjectionHook',
    'Fp32ModulesHook',
    'GuardListener',
    'InputGuardHook',
    'LrFactorHook',
    'NanGuardHook',
    'RollbackHook',
    'StabilityMonitorHook',
    'StateAuditHook',
    'choose_resume',
]
