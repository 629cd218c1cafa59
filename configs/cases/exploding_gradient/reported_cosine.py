# The report's loop, with a scheduler that multiplies what it finds: nothing
# ever puts the halved learning rate back.
_base_ = ['plain.py']

optim_wrapper = dict(type='ReportedOptimWrapper')
param_scheduler = [dict(type='CosineAnnealingLR', T_max=150, by_epoch=False)]
