"""A config as xtuner writes it: classes as types, AMP, and a strategy."""

from deepspeed_chat import Chats, ChatTuning
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from torch.optim import AdamW

max_epochs = 1
model = dict(type=ChatTuning)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type=Chats),
    sampler=dict(type=DefaultSampler, shuffle=False),
)
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-3, betas=(0.9, 0.999), weight_decay=0),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=2,
    loss_scale='dynamic',
    dtype='float16',
)
param_scheduler = [
    dict(
        type=LinearLR,
        start_factor=1e-2,
        by_epoch=True,
        begin=0,
        end=0.5 * max_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type=CosineAnnealingLR,
        eta_min=0.0,
        by_epoch=True,
        begin=0.5 * max_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
default_hooks = dict(
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=4),
)
strategy = dict(
    type='DeepSpeedStrategy',
    exclude_frozen_parameters=True,
    config=dict(
        gradient_accumulation_steps='auto',
        train_micro_batch_size_per_gpu='auto',
        gradient_clipping='auto',
        zero_allow_untested_optimizer=True,
        zero_optimization=dict(stage=2, reduce_bucket_size=1000),
        fp16=dict(enabled=True, initial_scale_power=16),
    ),
)
