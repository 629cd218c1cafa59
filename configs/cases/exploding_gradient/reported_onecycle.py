# The report's loop, with the scheduler that it uses: OneCycleLR sets the
# learning rate anew at each iteration, so that halving it lasts for one.
_base_ = ['plain.py']

optim_wrapper = dict(type='ReportedOptimWrapper')
