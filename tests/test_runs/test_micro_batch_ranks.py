"""Micro-batches that are left out on one of two ranks, or on both."""

import itertools
import json

import pytest
from ranks import launch

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

CAUSES = {
    'input': 'loss_nonfinite',
    'loss': 'loss_nonfinite',
    'grad': 'grad_nonfinite',
    'buffer': 'buffer_nonfinite',
}
# [rank, window, number], from 0.
PLACES = {
    'none': [],
    'first on rank 0': [[0, 1, 0]],
    'last on rank 1': [[1, 1, 1]],
    'one on each': [[0, 2, 1], [1, 2, 0]],
    'all of rank 0': [[0, 2, 0], [0, 2, 1]],
    'all of rank 1': [[1, 0, 0], [1, 0, 1]],
    'all': [[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]],
}
SCENES = {}
for where, places in PLACES.items():
    sites = CAUSES if places else ['', 'freeze']
    for site, broadcasts in itertools.product(sites, (False, True)):
        scene = [places, site, broadcasts]
        SCENES[f'{where}, {site}, {broadcasts}'] = scene


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('micro_batches')
    (work_dir / 'scenes.json').write_text(json.dumps(SCENES))
    launch('micro_batch_job.py', work_dir)
    return [
        json.loads((work_dir / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]


@pytest.mark.parametrize('name', SCENES)
def test_the_others_make_the_update(ranks, name):
    places, site, _ = SCENES[name]
    if site == 'freeze' and not HAS_CPU_SCALER:
        pytest.skip('DDP of PyTorch 2.1 itself leaves the ranks apart')
    for seen in (rank[name] for rank in ranks):
        assert seen['is_shared'], 'the ranks are not at the same weights'
        assert not seen['has_idle_state']
        if len(places) % 2:  # of four, three: a third has no exact float
            assert seen['distance'] < 1e-6
        else:
            assert seen['differing'] == []
        assert seen['state']['total_skips'] == int(len(places) == 4)
        left_out = len(places) if len(places) < 4 else 0
        assert seen['state']['num_left_out'] == left_out
        if not places:
            assert seen['told'] == []
            continue
        action = 'skip' if len(places) == 4 else 'step'
        struck = sorted({rank for rank, _, _ in places})
        about = dict(
            total=4,
            left_out=[
                dict(rank=rank, number=number + 1, iter=window)
                for rank, window, number in places
            ],
        )
        assert seen['told'] == [[action, CAUSES[site], struck, about]]
    # Each rank can tell it.
    assert ranks[0][name]['names'] == ranks[1][name]['names']
    named = dict(grad=['head.weight'], buffer=['bn.running_var'], loss=[])
    if places and site in named:
        assert ranks[0][name]['names'] == [named[site]]


def test_what_cannot_work_is_refused(ranks):
    for seen in (rank['refusals'] for rank in ranks):
        assert 'must be wrapped in DistributedDataParallel' in seen['bare']
        assert 'FSDP' in seen['fsdp']
        assert 'sparse=False' in seen['sparse']
