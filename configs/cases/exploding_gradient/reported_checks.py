# The report's checks alone: of the gradients, and of the weights after the step.
_base_ = ['plain.py']

optim_wrapper = dict(type='ReportedOptimWrapper', has_tiers=False)
