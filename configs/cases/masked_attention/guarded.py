# plain.py, guarded, its inputs checked, and what is not in the vocabulary left
# out before it is drawn.
_base_ = ['plain.py']

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='mmnanguard.ValidateSample',
                checks=[dict(type='Range', key='tokens', min=0, max=151642)],
            ),
            dict(type='PackTensors', keys=['tokens', 'mask', 'noise', 'time']),
        ]
    )
)
optim_wrapper = dict(type='mmnanguard.NanGuardOptimWrapper')
default_hooks = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    input_guard=dict(type='mmnanguard.InputGuardHook'),
    bad_samples=dict(type='mmnanguard.BadSamplesHook'),
)
