"""Ring 2: tensors in, facts out; torch and the core only."""

from .agree import agree, merge
from .apply import apply_update, scaled_lr
from .audit import Found, KeptTensor, StateAudit
from .blame import TensorNames, blame, plain_name
from .checkpoint_file import CheckpointFile, look_at, settle
from .grad_rules import AdaptiveGradClip, ValueClip
from .grad_scaler import HAS_CPU_SCALER
from .grad_sum import GradSum, find_ddp, reduced_params
from .host_read import read_once
from .load_plain import load_plain
from .loss_scale import GuardedGradScaler
from .module_probe import ModuleProbe, Origin
from .observe import Reading, look_closer, nonfinite_indices, observe
from .replay import Pass, ReplayWrapper, Setting, run_pass
from .rng_state import read_rng, set_rng
from .safe_ops import (
    masked_mean,
    masked_softmax,
    safe_divide,
    safe_log,
    safe_norm,
    safe_sqrt,
)
from .saved_optimizer import running_stats, walk
from .scan import CheckpointScan, Finding, scan_checkpoint, settle_masks
from .shards import Placement, Shards, is_spread, local
from .snapshot import Snapshot
from .state_copy import StateCopy
from .watch import forget_watched, read_watched, watch

__all__ = [
    'HAS_CPU_SCALER',
    'AdaptiveGradClip',
    'CheckpointFile',
    'CheckpointScan',
    'Finding',
    'Found',
    'GradSum',
    'GuardedGradScaler',
    'KeptTensor',
    'ModuleProbe',
    'Origin',
    'Pass',
    'Placement',
    'Reading',
    'ReplayWrapper',
    'Setting',
    'Shards',
    'Snapshot',
    'StateAudit',
    'StateCopy',
    'TensorNames',
    'ValueClip',
    'agree',
    'apply_update',
    'blame',
    'find_ddp',
    'forget_watched',
    'is_spread',
    'load_plain',
    'local',
    'look_at',
    'look_closer',
    'masked_mean',
    'masked_softmax',
    'merge',
    'nonfinite_indices',
    'observe',
    'plain_name',
    'read_once',
    'read_rng',
    'read_watched',
    'reduced_params',
    'run_pass',
    'running_stats',
    'safe_divide',
    'safe_log',
    'safe_norm',
    'safe_sqrt',
    'scaled_lr',
    'scan_checkpoint',
    'set_rng',
    'settle',
    'settle_masks',
    'walk',
    'watch',
]
