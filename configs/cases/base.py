# What the cases share. Samples come in the order of their index, so that it is
# known by construction which iteration meets which; no validation but the last.
default_scope = 'mmengine'

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_evaluator = dict(type='MeanError')
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10), checkpoint=None
)
randomness = dict(seed=0)
