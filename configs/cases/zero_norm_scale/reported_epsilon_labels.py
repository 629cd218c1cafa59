# The first cure where the length is that of labels alone, which have no
# gradient.
_base_ = ['reported_epsilon.py']

model = dict(scale_of='labelled')
