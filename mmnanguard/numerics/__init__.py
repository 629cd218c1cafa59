"""Ring 2, which turns tensors into facts. It imports torch and the core only.

1. ``base``: tensor operations that the other rooms build on.
2. ``update``: the stages of an update, from gradients to a verdict's effect.
3. ``snapshot``: copies of the tensors that forward passes change.
4. ``checkpoints``: scans, audits and copies of the state of a run.
5. ``probe``: the replay of a window, to find where a fault begins.

``safe_ops`` holds operations for models, and ``guard_protocol`` the part of a
guard that hooks may use.
"""

from .checkpoints.load_plain import load_plain
from .checkpoints.state_copy import StateCopy
from .safe_ops import (
    masked_mean,
    masked_softmax,
    safe_divide,
    safe_log,
    safe_norm,
    safe_sqrt,
)
from .update.grad_rules import AdaptiveGradClip
from .update.loss_scale import GuardedGradScaler
from .update.watch import watch

__all__ = [
    'AdaptiveGradClip',
    'GuardedGradScaler',
    'StateCopy',
    'load_plain',
    'masked_mean',
    'masked_softmax',
    'safe_divide',
    'safe_log',
    'safe_norm',
    'safe_sqrt',
    'watch',
]
