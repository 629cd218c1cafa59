# plain_fp16.py with guarded updates: one type and two hooks. It also runs on
# a CPU.
_base_ = ['plain_fp16.py']

optim_wrapper = dict(type='mmnanguard.NanGuardAmpOptimWrapper')
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
)
