"""Models and batches that hold all kinds of tensors, in guarded runs.

Each run is a process: some kernels end the interpreter.
"""

from pathlib import Path

import pytest
import torch
from ranks import finish, start
from torch import nn
from toys import ToyNet, assert_same, guard_hooks, make_runner, wrapper

JOB = Path(__file__).with_name('odd_tensors_job.py')


@pytest.mark.parametrize(
    ('role', 'change'),
    [
        ('buffers', 'none'),
        ('buffers', 'write'),
        ('buffers', 'replace'),
        ('buffers', 'resize'),
        ('buffers', 'drop'),
        ('parameters', 'none'),
        ('parameters', 'write'),
        ('batch', 'none'),
        ('optimizer', 'none'),
    ],
)
def test_equals_the_plain_run(role, change, tmp_path):
    process = start([JOB, role, change, tmp_path])
    output = finish(process)
    assert process.returncode == 0, output[-3000:]
    assert output.endswith('equal\n')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Traceback' not in log
    assert 'cannot write' not in log
    if role == 'buffers':
        assert log.count('odd.opaque (Opaque)') == 1
        assert log.count('odd.copyable (Copyable)') == 1


class LazyNet(ToyNet):
    """A model whose trained parameters get their shapes in iteration 1."""

    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(2)

    def init_weights(self):
        """Nothing: MMEngine's own takes the mean of each parameter."""


def test_lazy_parameters_are_trained(tmp_path):
    struck = [1, 4, 5]
    hooks = guard_hooks(*(dict(iter=now, site='grad') for now in struck))
    for name in ('Autopsy', 'StateAudit', 'Rollback'):
        hooks[name] = dict(type=f'mmnanguard.{name}Hook')
    hooks['dump'] = dict(type='mmnanguard.BatchDumpHook', save_weights=True)
    runs = []
    for optim_wrapper, changes in (
        (wrapper(), dict(default_hooks=hooks)),
        (wrapper('OptimWrapper'), dict(leave_out=struck)),
    ):
        torch.manual_seed(0)
        runner = make_runner(
            tmp_path, optim_wrapper, model=LazyNet(), max_iters=6, **changes
        )
        runner.train()
        runs.append(runner)
    assert_same(*runs)
