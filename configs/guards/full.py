# All that takes no number of your own, at the precision that the config has;
# the wrapper's type is replaced by its guarded twin. What happens, rung by
# rung:
#   a routine overflow     the loss scale comes down
#   any other bad update   it is skipped, the first of its kind looked into,
#                          and its batch dumped
#   a module overflows     it runs in float32 from then on
#   20 skips in a row, or half of the last 200 updates, or bad weights, or a
#   loss most of the way back to where it began
#                          back to an earlier state, and on at a tenth of the
#                          learning rate, three times at most
#   after that             training halts
optim_wrapper = dict(guard=dict(when_exhausted='rollback', divergence=dict()))
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    event_text=dict(type='mmnanguard.EventTextHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
    input_guard=dict(type='mmnanguard.InputGuardHook', action='reject'),
    dump=dict(type='mmnanguard.BatchDumpHook'),
    audit=dict(type='mmnanguard.StateAuditHook'),
    rollback=dict(type='mmnanguard.RollbackHook', lr_factor=0.1),
)
