# The report's second cure: the length is clamped, after the square root.
_base_ = ['plain.py']

model = dict(min_scale=1e-6)
