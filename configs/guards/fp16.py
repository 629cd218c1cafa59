# float16 with a loss scale that is lowered on overflow, down to its floor. Costs one read of the gradients per update, and copies of the norm
# layers' statistics.
optim_wrapper = dict(
    type='mmnanguard.NanGuardAmpOptimWrapper', dtype='float16'
)
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    event_text=dict(type='mmnanguard.EventTextHook'),
)
