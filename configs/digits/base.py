# The base of the configs here: 8 epochs on the digits, about 99 % accuracy.
# The net is so small that OMP_NUM_THREADS=1 is faster on busy cores.
default_scope = 'mmengine'
custom_imports = dict(
    imports=['configs.digits.digits'], allow_failed_imports=False
)

# inputs are pixels from 0 to 16; mean and std are those of the train split
model = dict(
    type='DigitsNet',
    channels=(16, 16),
    norm_cfg=dict(type='BN'),
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[4.886], std=[6.018]
    ),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='DigitsDataset', split='train', pipeline=[dict(type='PackDigits')]
    ),
)
val_dataloader = dict(
    batch_size=180,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DigitsDataset', split='val', pipeline=[dict(type='PackDigits')]
    ),
)
val_evaluator = dict(type='DigitsAccuracy')

train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=45),
    dict(
        type='CosineAnnealingLR',
        begin=1,
        end=8,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=15),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
randomness = dict(seed=0, deterministic=False)
