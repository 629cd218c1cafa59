"""The commands that start a run again, or a tool on it."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Union

from mmnanguard._support.escape import shell_word

__all__ = ['Launch', 'dumped_config', 'near', 'tool_command']

# Placeholders for what is not known. They are written in capitals, so that a
# reader sees that the command is not complete, and they fail when pasted.
CONFIG = 'CONFIG'
HOSTS, MASTER_ADDR, NODE_RANK = 'HOSTS', 'MASTER_ADDR', 'NODE_RANK'
SRUN_OPTIONS = 'SRUN_OPTIONS'  # the partition and GPUs, by cluster
MAX_CONFIGS = 1  # with more files, nothing says which is the run's


@dataclass(frozen=True)
class Launch:
    """The start of a run, as far as a command can repeat it.

    Attributes:
        config: The path of the run's config.
        work_dir: The work dir; '' leaves the choice to the config.
        launcher: MMEngine's launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        ranks: The number of processes.
        ranks_per_node: The number of processes on one node.
        lr_factor: The factor on the learning rates of the config.
        is_over: Whether the run has come to its end: nothing is left to
            resume.
    """

    config: str = CONFIG
    work_dir: str = ''
    launcher: str = 'none'
    ranks: int = 1
    ranks_per_node: int = 1
    lr_factor: float = 1.0
    is_over: bool = False

    def train(self, *options: str) -> str:
        """Return a command to paste that trains with these options.

        On several nodes, torchrun is to be started on each of them.

        Args:
            options: Words of the command line, which are quoted.
        """
        words = [*self._starter(), '-m']
        words += ['mmnanguard', 'train', self.config]
        if self.work_dir:
            words += ['--work-dir', self.work_dir]
        if self.launcher != 'none':
            words += ['--launcher', self.launcher]
        return ' '.join(map(shell_word, [*words, *options]))

    def train_on(self, *options: str) -> str:
        """Return a command that resumes the run.

        If nothing is left of it, the command trains anew, in a folder of the
        work dir.

        Args:
            options: More words of the command line.
        """
        if not self.is_over:
            return self.train('--resume', *options)
        work_dir = str(Path(self.work_dir, 'again'))
        return replace(self, work_dir=work_dir).train(*options)

    def _starter(self) -> List[str]:
        """Return the words that start all processes of the run."""
        ranks, local = self.ranks, self.ranks_per_node
        has_nodes = ranks > local > 0
        if self.launcher == 'pytorch':
            words = ['torchrun', f'--nproc_per_node={local}']
            if has_nodes:
                words += [
                    f'--nnodes={-(-ranks // local)}',
                    f'--node_rank={NODE_RANK}',
                    f'--master_addr={MASTER_ADDR}',
                ]
            return words
        words = ['python']
        if self.launcher == 'slurm':
            words = ['srun', SRUN_OPTIONS, f'--ntasks={ranks}']
            words += [f'--ntasks-per-node={local}', 'python']
        elif self.launcher == 'mpi':
            # MMEngine reads the variable.
            address, hosts = '127.0.0.1', []
            if has_nodes:
                address, hosts = MASTER_ADDR, ['-H', HOSTS]
            words = ['mpirun', '-np', str(ranks), *hosts]
            words += ['-x', f'MASTER_ADDR={address}', 'python']
        return words

    def train_slower(self, factor: float, *options: str) -> str:
        """Return a command that resumes at lower learning rates.

        Args:
            factor: Factor on the present rates.
            options: More words of the command line.
        """
        # The option is about the rates of the config, so that a command that
        # is run again lowers nothing again.
        total = f'{self.lr_factor * factor:g}'
        return self.train('--resume', '--lr-factor', total, *options)

    def tool(self, name: str, *options: str) -> str:
        """Return a command to paste that runs a tool on the config."""
        return tool_command(name, self.config, *options)


def tool_command(name: str, *words: object) -> str:
    """Return a command to paste that runs a tool of this package."""
    quoted = map(shell_word, words)
    return ' '.join(['python -m mmnanguard', name, *quoted])


def dumped_config(log_dir: Union[str, Path], work_dir: Path) -> str:
    """Return the path of the config that MMEngine has dumped for a run.

    The dump is complete: it has all parent configs and all options of the
    command line.

    Args:
        log_dir: The folder of the process start.
        work_dir: The work dir, which has a dump, too.
    """
    dumped = Path(log_dir, 'vis_data', 'config.py')
    if dumped.is_file():
        return str(dumped)
    # Without a local visualizer there is only the dump of the work dir, whose
    # name is that of the config.
    others = list(work_dir.glob('*.py'))
    if len(others) == MAX_CONFIGS:
        return str(others[0])
    return CONFIG


def near(path: str) -> str:
    """Return a path below this folder without the folder; others unchanged."""
    with suppress(ValueError):  # another drive of Windows
        relative = os.path.relpath(path)
        if not relative.startswith('..'):
            return relative
    return path
