# The report's last cure: a tenth of the learning rate.
_base_ = ['plain.py']

optim_wrapper = dict(optimizer=dict(lr=0.015))
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=0.015,
        pct_start=0.3,
        anneal_strategy='linear',
        total_steps=150,
        by_epoch=False,
    )
]
