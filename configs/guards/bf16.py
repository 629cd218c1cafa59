# bfloat16: the range of float32, so no loss scale. Costs one read of the
# gradients per update, and copies of the norm layers' statistics.
optim_wrapper = dict(
    type='mmnanguard.NanGuardAmpOptimWrapper', dtype='bfloat16'
)
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    event_text=dict(type='mmnanguard.EventTextHook'),
)
