"""FaultInjectionHook: planted faults, to rehearse an incident.

1. ``fault``: a planted fault, read from its config, and the tensor that it
   strikes. Faults of the user are functions in the registry ``FAULTS``.
2. ``fault_injection_hook``: the hook that plants faults.
3. ``short_drill``: the drill of a config that plans no faults itself.
"""
