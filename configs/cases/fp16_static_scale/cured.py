# The guard, and what overflows in float32.
_base_ = ['guarded.py']

default_hooks = dict(
    fp32=dict(
        type='mmnanguard.Fp32ModulesHook', modules=['backbone.patch_embed']
    )
)
