# The report's run: bf16, and one hand in 1,120 whose middle finger's joints
# coincide, in batch 107.
_base_ = ['../base.py']

custom_imports = dict(
    imports=['configs.cases.zero_norm_scale.hand_pose'],
    allow_failed_imports=False,
)

keys = ['image', 'theta', 'shape', 'bones', 'trans']
model = dict(type='HandNet')
train_dataloader = dict(
    dataset=dict(
        type='HandDataset',
        size=1120,
        spoilt=[851],
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)
val_dataloader = dict(
    dataset=dict(
        type='HandDataset',
        size=128,
        seed=1,
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)

optim_wrapper = dict(
    type='UnguardedAmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=1e-2),
)
