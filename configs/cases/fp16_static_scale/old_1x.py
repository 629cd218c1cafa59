# The training keys of plain.py as a 1.x project writes them; MMEngine does not
# read them. guarded.py is what they become.
optimizer = dict(type='AdamW', lr=5e-3)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
fp16 = dict(loss_scale=1024.0)
lr_config = dict(policy='fixed')
runner = dict(type='EpochBasedRunner', max_epochs=1)
checkpoint_config = None
log_config = dict(interval=10, hooks=[dict(type='TextLoggerHook')])
data = dict(samples_per_gpu=4, workers_per_gpu=0)
custom_imports = dict(
    imports=['configs.cases.fp16_static_scale.segmentor'],
    allow_failed_imports=False,
)
