# guarded.py with a look at each sample: a hand whose middle finger is not from
# 1 to 200 mm long is left out.
_base_ = ['guarded.py']

keys = ['image', 'theta', 'shape', 'bones', 'trans']
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='mmnanguard.ValidateSample',
                checks=[dict(type='Range', key='norm_scale', min=1, max=200)],
            ),
            dict(type='PackTensors', keys=keys),
        ]
    )
)
