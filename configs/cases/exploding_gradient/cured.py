# guarded.py with a look at each sample: features that no converged simulation
# has are left out.
_base_ = ['guarded.py']

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='mmnanguard.ValidateSample',
                checks=[dict(type='Range', key='simulated', min=-8, max=8)],
            ),
            dict(type='PackTensors', keys=['sequence', 'simulated', 'label']),
        ]
    )
)
