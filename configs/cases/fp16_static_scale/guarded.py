# plain.py, guarded: the loss scale can come down.
_base_ = ['plain.py']

optim_wrapper = dict(
    type='mmnanguard.NanGuardAmpOptimWrapper',
    dtype='float16',
    guard=dict(proven_after=40),  # the whole run is 100 updates
)
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
)
