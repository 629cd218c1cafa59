# A learning rate that is ten times too high: OneCycleLR goes up to 2, where 0.2
# is right, and there are no norm layers. Unguarded, the net learns for two
# epochs and then breaks for good: it ends near 10 %, which is chance. With
# --guard full the run rolls back and goes on at a tenth of the rate. Unguarded
# it needs a GPU, as plain_fp16.py does.
_base_ = ['plain_fp16.py']

model = dict(norm_cfg=None)

train_cfg = dict(max_epochs=12)
optim_wrapper = dict(
    loss_scale='dynamic',
    clip_grad=None,
    optimizer=dict(
        _delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4
    ),
)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=2.0,
        pct_start=0.5,
        total_steps=540,  # 12 epochs of 45 iterations
        by_epoch=False,
    )
]
