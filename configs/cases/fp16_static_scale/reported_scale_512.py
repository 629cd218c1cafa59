# MMEngine's own handling at the scale that the report came from.
_base_ = ['reported_scale_1024.py']

optim_wrapper = dict(loss_scale=512.0)
