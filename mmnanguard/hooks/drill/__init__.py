"""FaultInjectionHook: planted faults, to rehearse an incident.

1. ``fault``: one planted fault, from its config.
2. ``fault_injection_hook``: the hook that plants faults.
"""
