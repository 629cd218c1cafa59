"""A fault on one of two ranks: all reject, alike, and none waits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


def launch(work_dir, site, rank=0, iters=(3, 5), limit=20, num_ranks=2):
    """Every rank's results; a hang ends at the deadline."""
    env = {
        'PYTHONPATH': os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        'PYTHONWARNINGS': 'ignore',
        'OMP_NUM_THREADS': '1',
    }
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run'),
            *('--standalone', f'--nproc_per_node={num_ranks}'),
            TESTS / 'test_runs' / 'ddp_job.py',
            *(work_dir, site, str(rank), ','.join(map(str, iters))),
            str(limit),
        ],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return [
        torch.load(work_dir / f'rank_{rank}.pt', weights_only=True)
        for rank in range(num_ranks)
    ]


def read_rows(work_dir):
    (path,) = work_dir.glob('*/nanguard/events.jsonl')
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row['kind'] == 'update']


def same(left, right):
    """Bit for bit; statistics of batch norms are each rank's own."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if 'running' not in name:
            assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope='module')
def oracle(tmp_path_factory):
    """The run without those iterations."""
    return launch(tmp_path_factory.mktemp('oracle'), 'none')


@pytest.mark.parametrize(
    ('site', 'rank', 'cause', 'scale', 'ranks'),
    [
        # Finite gradients on both ranks: only the flag tells the other.
        ('loss', 1, 'loss_nonfinite', 64.0, [1]),
        ('buffer', 1, 'buffer_nonfinite', 64.0, [1]),
        # DDP has spread the bad gradients; the loss was finite.
        ('grad', 0, 'loss_nonfinite', 64.0, [0]),
    ],
)
def test_a_fault_on_one_rank(
    tmp_path, oracle, site, rank, cause, scale, ranks
):
    faulty = launch(tmp_path, site, rank)
    same(faulty[0]['tensors'], faulty[1]['tensors'])
    for result, expected in zip(faulty, oracle):
        for name, tensor in result['tensors'].items():
            assert torch.equal(tensor, expected['tensors'][name]), name
    assert [result['scale'] for result in faulty] == [scale, scale]
    assert faulty[0]['state'] == faulty[1]['state']
    rows = read_rows(tmp_path)
    assert [row['iter'] for row in rows] == [3, 5]
    assert {row['cause'] for row in rows} == {cause}
    assert [row['ranks'] for row in rows] == [ranks, ranks]
    # The sampler deals samples out: rank 1 has the odd ones.
    for row in rows:
        numbers = [int(name[6:12]) for name in row['samples']]
        assert {number % 2 for number in numbers} == {rank}
    if site == 'buffer':
        (bad,) = rows[0]['params']
        assert bad['name'] == 'backbone.1.running_var'


def test_all_ranks_halt_together(tmp_path):
    results = launch(tmp_path, 'loss', rank=1, iters=(4, 5), limit=2)
    for result in results:
        assert 'halted at iteration 5' in result['halted']
