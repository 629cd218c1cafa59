# guarded.py in bfloat16, which has the range of float32.
_base_ = ['guarded.py']

optim_wrapper = dict(dtype='bfloat16', loss_scale='dynamic')
