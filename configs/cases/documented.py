# What each run of configs/cases comes to. tools/cases.py compares, and tells
# those of a case in the order that they have here. A list is of two bounds; of
# 'culprit' and 'raised', of words that stand in what was told.
zero_norm_scale = dict(
    plain=dict(bad_from=107, error='nan'),
    guarded=dict(
        skips=1,
        bad_weights=0,
        dumps=1,
        error=[0, 90],
        culprit=['hand/000851', 'aten.div', 'norm_scale_gt from 0 '],
    ),
    cured=dict(events=0, bad_weights=0, error=[0, 90]),
    cured_ops=dict(events=0, bad_weights=0, error=[0, 90]),
    reported_epsilon=dict(
        bad_from=107, first_nan=108, error='nan', top_loss=[1e6, 1e9]
    ),
    reported_clamp=dict(
        bad_from=107, first_nan=108, error='nan', top_loss=[1e6, 1e9]
    ),
    reported_epsilon_labels=dict(
        bad_weights=0, error=[0, 90], top_loss=[1e6, 1e9]
    ),
)
exploding_gradient = dict(
    plain=dict(bad_from=[51, 80], error='nan'),
    guarded=dict(
        skips=0,
        events=[3, 6],
        bad_weights=0,
        error=[0, 0.15],
        top_norm=[12, 25],
        late_norm=[0.5, 1],
        culprit=['simulated/000784'],
    ),
    guarded_audit=dict(
        raised=['training halted', 'the state of the run is bad'],
        culprit=["'sequence_model.0.weight' (weights)"],
    ),
    cured=dict(
        events=0,
        bad_weights=0,
        error=[0, 0.15],
        top_norm=[0, 5],
        late_norm=[0.5, 1],
    ),
    reported_checks=dict(bad_weights=0, lost=[70, 100]),
    reported_onecycle=dict(bad_weights=0, lr_left=1, error=[0.1, 0.25]),
    reported_cosine=dict(bad_weights=0, lr_left=[0, 0.2]),
    reported_lr=dict(bad_weights=0, lost=0, error=[0.2, 0.5]),
)
fp16_static_scale = dict(
    plain=dict(
        raised=['Iter 51', "'backbone.patch_embed.projection.weight' is NaN"]
    ),
    guarded=dict(
        skips=[1, 2],
        bad_weights=0,
        error=[0, 0.05],
        culprit=[
            "'backbone.patch_embed.projection.weight' is Inf: frame/000200"
        ],
    ),
    cured=dict(events=0, lost=0, bad_weights=0, error=[0, 0.05]),
    reported_scale_512=dict(lost=0, bad_weights=0, error=[0, 0.05]),
    reported_scale_1024=dict(lost=[1, 3], bad_weights=0, error=[0, 0.05]),
    reported_scale_4096=dict(lost=[3, 4], bad_weights=0, error=[0, 0.05]),
)
masked_attention = dict(
    plain=dict(bad_from=6, error='nan'),
    guarded=dict(
        skips=2,
        bad_weights=0,
        error=[0, 0.1],
        culprit=[
            'text/000043',
            'blocks.0.attn',
            'softmax',
            'prediction is not finite',
            'text/000236',
        ],
    ),
    cured=dict(events=0, bad_weights=0, error=[0, 0.1]),
    reported_check=dict(lost=2, bad_weights=0, error=[0, 0.1]),
    reported_norm=dict(bad_from=6, first_nan=7, error='nan'),
    reported_lr=dict(bad_from=6, first_nan=6, error='nan'),
    reported_zeroing=dict(lost=0, bad_weights=0, error=[0, 0.1]),
    reported_mask=dict(bad_from=6, first_nan=6, error='nan'),
)
adam_depthwise_fp16 = dict(
    plain=dict(bad_from=[30, 90], error='nan'),
    plain_sgd=dict(bad_weights=0, error=[0, 0.3]),
    reloaded=dict(bad_weights=0, bad_moments=[1, 99], lost=[10, 70]),
    guarded=dict(
        skips=[1, 4],
        bad_weights=0,
        bad_moments=0,
        error=[0, 0.3],
        culprit=['image_encoder.dcfb3.msdc.dwconvs.0.0'],
    ),
    cured=dict(events=0, bad_weights=0, error=[0, 0.3]),
    cured_bf16=dict(events=0, bad_weights=0, error=[0, 0.3]),
    reported_inputs=dict(bad_from=[30, 90], error='nan'),
    reported_loop=dict(bad_buffers=[1, 8], lost=[1, 70], error='nan'),
)
