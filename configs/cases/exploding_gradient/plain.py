# The report's run: a learning rate near the limit, and six batches with six
# samples each whose simulated features are 36 times too large.
_base_ = ['../base.py']

custom_imports = dict(
    imports=['configs.cases.exploding_gradient.ensemble'],
    allow_failed_imports=False,
)

keys = ['sequence', 'simulated', 'label']
model = dict(type='EnsembleNet')
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type='SimulatedDataset',
        size=2400,
        spoilt=[
            16 * (batch - 1) + row
            for batch in (50, 65, 80, 95, 110, 125)
            for row in range(1, 7)
        ],
        pipeline=[dict(type='PackTensors', keys=keys)],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='SimulatedDataset',
        size=512,
        seed=1,
        pipeline=[dict(type='PackTensors', keys=keys)],
    )
)

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.15, momentum=0.9)
)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=0.15,
        pct_start=0.3,
        anneal_strategy='linear',
        total_steps=150,
        by_epoch=False,
    )
]
