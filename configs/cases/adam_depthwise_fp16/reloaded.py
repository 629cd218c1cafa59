# plain.py, and after a bad step on with the weights of before it.
_base_ = ['plain.py']

optim_wrapper = dict(type='ReloadingOptimWrapper')
