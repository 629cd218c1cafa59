# Unguarded, in float16. It needs a GPU: MMEngine refuses AmpOptimWrapper on
# a CPU, where guarded_fp16.py does run.
_base_ = ['base.py']

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale=1024.0,
    dtype='float16',
    clip_grad=dict(max_norm=35, norm_type=2),
)
