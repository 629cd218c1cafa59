# The report's first cure: 1e-6 is added to what is divided by.
_base_ = ['plain.py']

model = dict(epsilon=1e-6)
