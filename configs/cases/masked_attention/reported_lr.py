# The report's third cure: a tenth of the learning rate.
_base_ = ['plain.py']

optim_wrapper = dict(optimizer=dict(lr=3e-4))
