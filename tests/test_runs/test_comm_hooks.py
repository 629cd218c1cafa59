"""The state of DDP's communication hooks goes back with a rejected update."""

import json

import pytest
from ranks import launch

# Before PowerSGD begins, and after.
STRUCK = ['[2]', '[3, 6]']
KNOWN = [
    'power',
    'cold start',
    'no feedback',
    'neither',
    'wrapped',
    'own state',
    'post-local',
]


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('comm_hooks')
    launch('comm_hooks_job.py', work_dir)
    paths = [work_dir / f'rank_{rank}.json' for rank in range(2)]
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize('name', KNOWN)
@pytest.mark.parametrize('struck', STRUCK)
def test_equals_the_run_without_the_struck_iterations(ranks, name, struck):
    for rank in ranks:
        differing, skips, _ = rank[f'{name} {struck}']
        assert differing == []
        assert skips == len(json.loads(struck))
    # MMEngine logs warnings on rank 0 only.
    assert ranks[0][f'{name} {struck}'][2] is False


def test_a_hook_that_is_not_known_is_named(ranks):
    assert ranks[0]['unknown [2]'][2]


def test_micro_batches_refuse_hooks(ranks):
    for rank in ranks:
        assert 'powerSGD_hook with PowerSGDState' in rank['refused']


def test_a_rollback_brings_them_back(ranks):
    for rank in ranks:
        assert rank['rollbacks'] == 1
        assert rank['rollback'] == []
