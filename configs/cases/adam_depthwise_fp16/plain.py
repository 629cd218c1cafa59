# The report's run: Adam, float16, and no look at what is stepped with.
_base_ = ['../base.py']

custom_imports = dict(
    imports=['configs.cases.adam_depthwise_fp16.two_branches'],
    allow_failed_imports=False,
)

keys = ['image', 'table', 'label']
model = dict(type='TwoBranchNet')
train_dataloader = dict(
    dataset=dict(
        type='NoduleDataset',
        size=800,
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)
val_dataloader = dict(
    dataset=dict(
        type='NoduleDataset',
        size=256,
        seed=1,
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)

optim_wrapper = dict(
    type='UnguardedAmpOptimWrapper', optimizer=dict(type='Adam', lr=0.08)
)
