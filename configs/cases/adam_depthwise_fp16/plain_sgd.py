# plain.py with SGD, which has no moments.
_base_ = ['plain.py']

optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.08))
