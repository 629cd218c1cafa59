# plain.py, guarded: the larger a gradient, the less of it is kept, and a large
# one lowers the learning rate for a while. The schedule does not notice.
_base_ = ['plain.py']

optim_wrapper = dict(
    type='mmnanguard.NanGuardOptimWrapper',
    clip_grad=dict(type='TieredClip', tiers=[(10, 1), (5, 2), (0, 5)]),
    guard=dict(lr_backoff=dict(above=10, factor=0.5, recovery=10)),
)
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    audit=dict(type='mmnanguard.StateAuditHook', interval=50),
)
