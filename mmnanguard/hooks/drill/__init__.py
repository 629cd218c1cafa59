"""FaultInjectionHook: planted faults, to rehearse an incident.

1. ``fault``: one planted fault, from its config; the user's own are in the
   registry ``FAULTS``.
2. ``fault_injection_hook``: the hook that plants faults.
"""
