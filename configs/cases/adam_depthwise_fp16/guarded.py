# plain.py, guarded: what overflows is found and runs in float32 from then on.
_base_ = ['plain.py']

optim_wrapper = dict(
    type='mmnanguard.NanGuardAmpOptimWrapper', dtype='float16', loss_scale=1.0
)
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
)
