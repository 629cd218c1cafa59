# The report's loop alone: its checks of the loss and of the gradient norm.
_base_ = ['plain.py']

optim_wrapper = dict(type='LoopOptimWrapper')
