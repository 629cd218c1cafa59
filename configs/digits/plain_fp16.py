# float16 without a guard. It needs a GPU, because MMEngine refuses
# AmpOptimWrapper on a CPU. guarded_fp16.py runs on a CPU.
_base_ = ['base.py']

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale=1024.0,
    dtype='float16',
    clip_grad=dict(max_norm=35, norm_type=2),
)
