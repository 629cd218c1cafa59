# The report's run: float16 at a fixed loss scale of 1024. Frames with glare
# come in batches 51, 56, 61 and 66; until then all is well at that scale.
_base_ = ['../base.py']

custom_imports = dict(
    imports=['configs.cases.fp16_static_scale.segmentor'],
    allow_failed_imports=False,
)

keys = ['image', 'label']
model = dict(type='SwinLikeSegmentor')
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        type='GlareDataset',
        size=400,
        spoilt=[201, 221, 241, 261],
        pipeline=[dict(type='PackTensors', keys=keys)],
    ),
)
val_dataloader = dict(
    batch_size=32,
    dataset=dict(
        type='GlareDataset',
        size=64,
        seed=1,
        pipeline=[dict(type='PackTensors', keys=keys)],
    ),
)

optim_wrapper = dict(
    type='CheckingAmpOptimWrapper',
    loss_scale=1024.0,
    clip_grad=dict(max_norm=35, norm_type=2),
    optimizer=dict(type='AdamW', lr=5e-3),
)
