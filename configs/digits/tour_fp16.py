# A tour of the guard's reports in 60 iterations, for --guard full: a module
# overflows and is cured, an input is bad, and weights go bad outside any update.
# The run rolls back the first time and halts the second time.
_base_ = ['unstable_fp16.py']

train_cfg = dict(max_epochs=2)
default_hooks = dict(
    rollback=dict(
        type='mmnanguard.RollbackHook', interval=15, max_rollbacks=1
    ),
    fire_drill=dict(
        type='mmnanguard.FaultInjectionHook',
        faults=[
            dict(iter=20, site='input', value='nan'),
            dict(iter=40, site='weight', value='inf', where=r'head\.weight'),
            dict(iter=60, site='weight', value='nan', where=r'head\.bias'),
        ],
    ),
)
