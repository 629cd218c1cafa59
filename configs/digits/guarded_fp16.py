# plain_fp16.py with its updates guarded: one type and two hooks. It runs on a
# CPU too.
_base_ = ['plain_fp16.py']

optim_wrapper = dict(type='mmnanguard.NanGuardAmpOptimWrapper')
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
)
