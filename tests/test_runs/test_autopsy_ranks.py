"""A fault on one of two ranks, in a model that communicates in forward: all
ranks replay in lockstep, and the rank of the fault is named.
"""

import json

import pytest
import torch
from ranks import launch

# Of iteration 3, the batches of rank 0 are 16, 18, ... and of rank 1 17, ...
SITUATIONS = {
    'forward 1': dict(ill='forward', samples=[19], max_autopsies=9),
    'forward 0': dict(ill='forward', samples=[20], max_autopsies=9),
    'backward 1': dict(ill='backward', samples=[21], max_autopsies=9),
    'both': dict(ill='forward', samples=[18, 19], max_autopsies=9),
    # One culprit each, but only one autopsy is left.
    'twice': dict(ill='forward', samples=[19, 28], max_autopsies=1),
    'none': dict(ill='forward', samples=[19], max_autopsies=0),
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp('ranks')
    (path / 'situations.json').write_text(json.dumps(SITUATIONS))
    launch('autopsy_ranks_job.py', path)
    return json.loads((path / 'results.json').read_text())


@pytest.mark.parametrize(
    ('name', 'rank', 'phase', 'module', 'sample'),
    [
        ('forward 1', 1, 'forward', 'conv', 19),
        ('forward 0', 0, 'forward', 'conv', 20),
        ('backward 1', 1, 'backward', '', 21),
        ('both', 0, 'forward', 'conv', 18),
        ('twice', 1, 'forward', 'conv', 19),
    ],
)
def test_the_rank_is_named(results, name, rank, phase, module, sample):
    (row,) = results[name]['autopsies']
    assert row['id'] == results[name]['updates'][0]['id']
    assert (row['phase'], row['module']) == (phase, module)
    assert row['rank'] == rank
    assert row['samples'] == [f'train/{sample:06d}.jpg']
    assert row['batch_rows'] == [(sample - 16 - rank) // 2]
    assert row['repeats']
    assert row['exact']
    # Without its sample the window is finite on all ranks, unless the other
    # rank has a bad sample, too.
    assert row['tried'] == {'without_samples': name != 'both'}


@pytest.mark.parametrize('name', ['forward 1', 'both', 'twice'])
def test_ranks_that_went_bad_dump(results, name):
    # The model has carried the fault to all ranks; each dumps once.
    events = {row['id']: row for row in results[name]['updates']}
    dumps = results[name]['dumps']
    assert [row['rank'] for row in dumps] == [0, 1]
    for row in dumps:
        dump = torch.load(row['path'], weights_only=True)
        assert dump['event']['id'] == row['id']
        assert dump['rank'] == row['rank']
        # Every second sample is of the rank.
        first = (events[row['id']]['iter'] - 1) * 8 + row['rank']
        names = [s['metainfo']['img_path'] for s in samples_of(dump)]
        assert names == [f'train/{first + 2 * i:06d}.jpg' for i in range(4)]


def samples_of(dump):
    (batch,) = dump['batches']
    return batch['data_samples']


def test_training_goes_on_as_without(results):
    assert results['none']['autopsies'] == []
    for result in results.values():
        first, second = result['weights']
        assert str(first) == str(second)  # NaN would be equal, too
    assert results['forward 1']['weights'] == results['none']['weights']
