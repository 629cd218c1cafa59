# The report's run: 110 batches, of which 6 (5.5 % of the epoch) and 60 hold a
# text that is nothing but padding. Batch 30 has a token that is none.
_base_ = ['../base.py']

custom_imports = dict(
    imports=['configs.cases.masked_attention.diffusion'],
    allow_failed_imports=False,
)

keys = ['tokens', 'mask', 'noise', 'time']
model = dict(type='TokenDenoiser')
train_dataloader = dict(
    dataset=dict(
        type='TokenDataset',
        size=880,
        spoilt=[43, 477, 236],
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)
val_dataloader = dict(
    dataset=dict(
        type='TokenDataset',
        size=128,
        seed=1,
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)

optim_wrapper = dict(
    type='OptimWrapper',
    clip_grad=dict(max_norm=1.0),
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01),
)
