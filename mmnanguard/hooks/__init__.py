"""Ring 3, around the iteration: one consequence a file."""

from .event_log_hook import EventLogHook
from .fault_injection_hook import FaultInjectionHook
from .nan_guard_hook import NanGuardHook

__all__ = ['EventLogHook', 'FaultInjectionHook', 'NanGuardHook']
