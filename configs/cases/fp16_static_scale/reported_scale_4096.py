# MMEngine's own handling at the scale that the report would go to next.
_base_ = ['reported_scale_1024.py']

optim_wrapper = dict(loss_scale=4096.0)
