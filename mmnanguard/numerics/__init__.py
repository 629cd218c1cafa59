"""Ring 2: tensors in, facts out; torch and the core only."""

from .agree import agree
from .apply import apply_update
from .blame import TensorNames, blame
from .grad_rules import ValueClip
from .host_read import read_once
from .loss_scale import GuardedGradScaler
from .observe import Reading, look_closer, observe
from .shards import Placement, Shards, local
from .snapshot import Snapshot

__all__ = [
    'GuardedGradScaler',
    'Placement',
    'Reading',
    'Shards',
    'Snapshot',
    'TensorNames',
    'ValueClip',
    'agree',
    'apply_update',
    'blame',
    'local',
    'look_closer',
    'observe',
    'read_once',
]
