"""Ring 2: tensors in, facts out; torch and the core only."""

from .checkpoints.load_plain import load_plain
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
    'load_plain',
    'masked_mean',
    'masked_softmax',
    'safe_divide',
    'safe_log',
    'safe_norm',
    'safe_sqrt',
    'watch',
]
