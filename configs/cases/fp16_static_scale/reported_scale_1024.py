# MMEngine's own handling: what overflows is skipped, the scale stays.
_base_ = ['plain.py']

optim_wrapper = dict(type='UnguardedAmpOptimWrapper')
