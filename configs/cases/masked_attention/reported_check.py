# The report's first cure: a batch whose output is not finite is left out.
_base_ = ['plain.py']

optim_wrapper = dict(type='SkippingOptimWrapper')
