"""The start of a run, as far as a command needs it to start the run again."""

import os
import re

from mmengine.dist import get_world_size
from mmengine.runner import Runner

from .roles import LrScaler

__all__ = ['launcher_of', 'local_world_size', 'lr_factor_of']

# The number of processes of a node: torchrun, a step and a job of slurm (as in
# '8(x2),4'), and Open MPI.
LOCAL_SIZES = (
    'LOCAL_WORLD_SIZE',
    'SLURM_STEP_TASKS_PER_NODE',
    'SLURM_TASKS_PER_NODE',
    'OMPI_COMM_WORLD_LOCAL_SIZE',
)


def launcher_of(runner: Runner) -> str:
    """Return MMEngine's launcher: 'none', 'pytorch', 'slurm' or 'mpi'."""
    # A FlexibleRunner leaves the launcher to its strategy.
    launcher = getattr(runner, 'launcher', None)
    return str(launcher or runner.cfg.get('launcher') or 'none')


def lr_factor_of(runner: Runner) -> float:
    """Return the factor on the learning rates of the config."""
    for hook in runner.hooks:
        if isinstance(hook, LrScaler):
            return hook.factor
    return 1.0


def local_world_size() -> int:
    """Return the number of processes of this node, as the launcher says."""
    num_ranks = get_world_size()
    # A single process may run in a job of slurm that could hold many.
    if num_ranks == 1:
        return 1
    for name in LOCAL_SIZES:
        size = re.match(r'\d+', os.environ.get(name, ''))
        if size:
            return min(int(size[0]), num_ranks)
    return num_ranks
