# plain_fp32.py with guarded updates: one type and two hooks.
_base_ = ['base.py']

optim_wrapper = dict(type='mmnanguard.NanGuardOptimWrapper')
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
)
