# guarded.py with the depthwise convolutions in float32, as the report has it.
_base_ = ['guarded.py']

default_hooks = dict(
    fp32=dict(modules=[r're:image_encoder\..*dwconvs\.\d+\.0'], auto=False)
)
