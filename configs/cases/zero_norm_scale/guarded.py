# plain.py, guarded, with all that finds the culprit.
_base_ = ['plain.py']

optim_wrapper = dict(type='mmnanguard.NanGuardAmpOptimWrapper')
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    dump=dict(type='mmnanguard.BatchDumpHook'),
)
