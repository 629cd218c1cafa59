"""The commands that start a run again, for the log of that run."""

import os
from pathlib import Path

from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmnanguard.core.launch import Launch, dumped_config

from .roles import LrScaler

__all__ = ['launch_of', 'launcher_of', 'local_world_size', 'lr_factor_of']


def launch_of(runner: Runner) -> Launch:
    """Return what the commands in the log of a run need."""
    return Launch(
        config=dumped_config(runner.log_dir, Path(runner.work_dir)),
        work_dir=runner.work_dir,
        launcher=launcher_of(runner),
        ranks=get_world_size(),
        ranks_per_node=local_world_size(),
        lr_factor=lr_factor_of(runner),
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
    try:
        # torchrun sets it, other launchers need not.
        return int(os.environ['LOCAL_WORLD_SIZE'])
    except (KeyError, ValueError):
        return get_world_size()
