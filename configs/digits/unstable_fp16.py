# guarded_fp16.py with a convolution that overflows float16 on ordinary images,
# and with the hooks that find and cure it. Without the guard, or without the
# cure, the net learns nothing.
_base_ = ['guarded_fp16.py']

model = dict(depthwise_gain=1e5)
default_hooks = dict(
    autopsy=dict(type='mmnanguard.AutopsyHook'),
    fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
    input_guard=dict(type='mmnanguard.InputGuardHook', action='reject'),
    dump=dict(type='mmnanguard.BatchDumpHook', save_weights=True),
)
