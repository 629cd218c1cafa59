# float32 without a guard: MMEngine as it is, the baseline of guarded_fp32.py.
_base_ = ['base.py']
