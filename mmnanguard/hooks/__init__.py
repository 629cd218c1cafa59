"""Ring 3, around the iteration: one consequence a file."""

from .autopsy_hook import AutopsyHook
from .bad_samples_hook import BadSamplesHook
from .batch_dump_hook import BatchDumpHook
from .event_log_hook import EventLogHook
from .event_text_hook import EventTextHook
from .fault_injection_hook import FaultInjectionHook
from .fp32_modules_hook import Fp32ModulesHook
from .input_guard_hook import InputGuardHook
from .nan_guard_hook import NanGuardHook
from .pointers import choose_resume
from .rollback_hook import RollbackHook
from .state_audit_hook import StateAuditHook

__all__ = [
    'AutopsyHook',
    'BadSamplesHook',
    'BatchDumpHook',
    'EventLogHook',
    'EventTextHook',
    'FaultInjectionHook',
    'Fp32ModulesHook',
    'InputGuardHook',
    'NanGuardHook',
    'RollbackHook',
    'StateAuditHook',
    'choose_resume',
]
