# Every part of the guard that needs no number from you, at the config's own
# precision. The wrapper's type is replaced by its guarded type. What happens,
# step by step:
#   numbers grow           alerts say which module, and how long ahead
#   trouble ahead          a warning, while every number is still fine
#   a routine overflow     the loss scale is lowered
#   any other bad update   the update is skipped and its batch dumped; an
#                          autopsy runs for the first of each kind
#   a module overflows     the module runs in float32 from then on
#   20 skips in a row, or skips in half of the last 200 updates, or bad
#   weights, or a loss most of the way back to where it began
#                          the run rolls back to an earlier state, three times
#                          at most; it goes on at a tenth of the learning rate
#                          if the rate is to blame
#   after that             training halts
optim_wrapper = dict(guard=dict(when_exhausted='rollback', divergence=dict()))
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    event_text=dict(type='mmnanguard.EventTextHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
    input_guard=dict(type='mmnanguard.InputGuardHook', action='explain'),
    dump=dict(type='mmnanguard.BatchDumpHook', save_weights='auto'),
    stability=dict(type='mmnanguard.StabilityMonitorHook'),
    audit=dict(type='mmnanguard.StateAuditHook'),
    rollback=dict(type='mmnanguard.RollbackHook', lr_factor=0.1),
)
