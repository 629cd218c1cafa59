# Everything that this version has, at the precision that the config has: the
# wrapper's type is replaced by its guarded twin.
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
    input_guard=dict(type='mmnanguard.InputGuardHook', action='reject'),
    dump=dict(type='mmnanguard.BatchDumpHook'),
    audit=dict(type='mmnanguard.StateAuditHook'),
)
