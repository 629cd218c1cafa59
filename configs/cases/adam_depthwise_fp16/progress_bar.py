# guarded.py, looked at through tqdm's bar.
_base_ = ['guarded.py']

default_hooks = dict(bar=dict(type='ProgressBarHook'))
