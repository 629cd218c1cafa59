"""Faults on some of four ranks: all ranks reject alike, and none waits.

One launch runs all situations, one after the other.
"""

import json

import pytest
import torch
from ranks import launch

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

NUM_RANKS = 4
# With a parameter that is each rank's own; rank 0 does not use it.
OWN = dict(type='ExtraNet', ranks=[1, 2, 3], is_reduced=False)
# What the ranks share, and how they train.
CONFIGS = {
    'plain': dict(),
    'broadcast': dict(ddp=dict(broadcast_buffers=True)),
    # no_sync, and a last window of two.
    'windows': dict(accumulation=3, max_iters=11),
    'broadcast windows': dict(
        accumulation=3, max_iters=11, ddp=dict(broadcast_buffers=True)
    ),
    'unused': dict(
        model=dict(type='ExtraNet', ranks=[1], is_reduced=True),
        ddp=dict(find_unused_parameters=True),
    ),
    'own': dict(model=OWN),
    'own norm 1': dict(model=OWN, norm_type=1),
}
# Iterations that are struck, the last ones of their windows, and all of these.
# Not the first window: after it DDP fills its buckets in another order, in
# which the gradients of four ranks add up to something else in the last bit.
STRUCK = {
    **{config: ([3, 5], [3, 5], [3, 5]) for config in CONFIGS},
    'windows': ([5, 11], [6, 11], [4, 5, 6, 10, 11]),
    'broadcast windows': ([5, 8], [6, 9], [4, 5, 6, 7, 8, 9]),
}
# Config, faults (site, rank), the agreed cause and the ranks that are named.
CASES = [
    # Finite gradients on all ranks: only the flag tells the others.
    ('plain', [('loss', 1)], 'loss_nonfinite', [1]),
    ('plain', [('buffer', 1)], 'buffer_nonfinite', [1]),
    ('plain', [('input', 2)], 'input_nonfinite', [2]),
    ('plain', [('grad', 2)], 'grad_nonfinite', [2]),
    # DDP spreads bad gradients: only the loss tells whose they were.
    ('plain', [('backward', 0)], 'loss_nonfinite', [0]),
    ('plain', [('spread', 3)], 'grad_nonfinite', [0, 1, 2, 3]),
    # Two at once.
    ('plain', [('grad', 3), ('buffer', 1)], 'buffer_nonfinite', [1]),
    ('plain', [('buffer', 3), ('loss', 2)], 'loss_nonfinite', [2, 3]),
    ('broadcast', [('buffer', 3)], 'buffer_nonfinite', [3]),
    ('broadcast', [('buffer', 0)], 'buffer_nonfinite', [0]),
    ('windows', [('loss', 2)], 'loss_nonfinite', [2]),
    ('broadcast windows', [('buffer', 2)], 'buffer_nonfinite', [2]),
    ('unused', [('loss', 1)], 'loss_nonfinite', [1]),
    ('unused', [('grad', 0)], 'grad_nonfinite', [0]),
    ('own', [('grad', 3)], 'grad_nonfinite', [3]),
    ('own', [('loss', 0)], 'loss_nonfinite', [0]),
    ('own norm 1', [('grad', 3)], 'grad_nonfinite', [3]),
]


def name_case(config, faults, *_):
    return '-'.join([config, *(f'{site} {rank}' for site, rank in faults)])


SITUATIONS = {
    **{
        f'{config}-oracle': dict(keys, leave_out=STRUCK[config][2])
        for config, keys in CONFIGS.items()
    },
    **{
        name_case(config, faults): dict(
            CONFIGS[config], faults=faults, iters=STRUCK[config][0]
        )
        for config, faults, _, _ in CASES
    },
    'scale': dict(
        CONFIGS['own'],
        faults=[('grad', 3)],
        iters=[3, 5],
        loss_scale=dict(init_scale=64, min_scale=16, growth_interval=3),
    ),
    'halt': dict(faults=[('backward', 1)], iters=[4, 5], limit=2),
    'halt by a weight': dict(
        CONFIGS['own'], faults=[('weight', 3)], iters=[4]
    ),
}


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp('ddp')
    (path / 'situations.json').write_text(json.dumps(SITUATIONS))
    launch('ddp_job.py', path, num_ranks=NUM_RANKS)
    return path


def load(work_dir, name):
    """Return the results of every rank."""
    return [
        torch.load(work_dir / name / f'rank_{rank}.pt', weights_only=True)
        for rank in range(NUM_RANKS)
    ]


def read_rows(work_dir, name):
    (path,) = (work_dir / name).glob('*/nanguard/events.jsonl')
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row['kind'] == 'update']


def differing(left, right):
    assert left.keys() == right.keys()
    return [
        name
        for name, tensor in left.items()
        if not torch.equal(tensor, right[name])
    ]


@pytest.mark.parametrize(
    ('config', 'faults', 'cause', 'ranks'),
    CASES,
    ids=[name_case(*case) for case in CASES],
)
def test_a_fault_leaves_no_trace_on_any_rank(
    work_dir, config, faults, cause, ranks
):
    name = name_case(config, faults)
    oracle = load(work_dir, f'{config}-oracle')
    for result, expected in zip(load(work_dir, name), oracle):
        assert differing(result['tensors'], expected['tensors']) == []
        assert result['norms'] == expected['norms']
        assert result['state']['total_skips'] == 2
    rows = read_rows(work_dir, name)
    assert [row['iter'] for row in rows] == STRUCK[config][1]
    assert [row['cause'] for row in rows] == [cause] * 2
    assert [row['ranks'] for row in rows] == [ranks] * 2


@pytest.mark.parametrize('name', SITUATIONS)
def test_ranks_stay_alike(work_dir, name):
    results = load(work_dir, name)
    for result in results:
        assert differing(shared(result, name), shared(results[0], name)) == []
        for key in ('scale', 'state', 'halted'):
            assert result[key] == results[0][key]
    # One norm, the largest, and never a sum over ranks.
    assert len(results[0]['norms']) == results[0]['state']['num_steps']
    for norms in zip(*(result['norms'] for result in results)):
        local_norms, logged = zip(*norms)
        assert len(set(logged)) == 1
        assert logged[0] == pytest.approx(max(local_norms), rel=1e-5)


def shared(result, name):
    """Return the tensors that ranks share; batch norm statistics differ."""
    local_parts = ('running', 'extra') if is_own(name) else ('running',)
    return {
        name: tensor
        for name, tensor in result['tensors'].items()
        if not any(part in name for part in local_parts)
    }


def is_own(name):
    return SITUATIONS[name].get('model', {}).get('is_reduced') is False


@pytest.mark.parametrize('config', ['own', 'own norm 1'])
def test_ranks_have_something_of_their_own(work_dir, config):
    """The ranks differ; otherwise the situation would prove nothing."""
    results = load(work_dir, f'{config}-oracle')
    extra = [result['tensors']['head.extra'] for result in results]
    assert len({tuple(tensor.tolist()) for tensor in extra}) == NUM_RANKS
    norms = zip(*(result['norms'] for result in results))
    assert all(
        len({local_norm for local_norm, _ in ranks}) == NUM_RANKS
        for ranks in norms
    )


@pytest.mark.parametrize(
    ('name', 'rank', 'tensor'),
    [
        ('plain-buffer 1', 1, 'backbone.1.running_var'),
        ('plain-grad 2', 2, 'head.bias'),
        ('own-grad 3', 3, 'head.extra'),
    ],
)
def test_rows_are_those_of_the_bad_rank(work_dir, name, rank, tensor):
    for row in read_rows(work_dir, name):
        # The sampler deals samples out.
        numbers = [int(sample[6:12]) for sample in row['samples']]
        assert {number % NUM_RANKS for number in numbers} == {rank}
        assert [bad['name'] for bad in row['params']] == [tensor]
        assert row['num_bad_params'] == ('grad' in name)


@pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)
def test_the_scale_moves_alike(work_dir):
    for result in load(work_dir, 'scale'):
        # 64, lowered at 3 and at 5, grown after three commits.
        assert result['scale'] == 32.0


@pytest.mark.parametrize(
    ('name', 'iteration', 'words'),
    [
        ('halt', 5, 'max_consecutive_skips=2'),
        ('halt by a weight', 4, 'head.extra'),
    ],
)
def test_all_ranks_halt_together(work_dir, name, iteration, words):
    for result in load(work_dir, name):
        assert f'halted at iteration {iteration}' in result['halted']
        assert words in result['halted']
