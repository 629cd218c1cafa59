"""The state of DDP's communication hooks goes back with a rejected update."""

import json

import pytest
from ranks import launch

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
def test_equals_the_run_without_the_struck_iterations(ranks, name):
    for rank in ranks:
        differing, skips, _ = rank[name]
        assert differing == []
        assert skips == 3
    # MMEngine logs warnings on rank 0 only.
    assert ranks[0][name][2] is False


def test_a_hook_that_is_not_known_is_named(ranks):
    assert ranks[0]['unknown'][2]


def test_micro_batches_refuse_hooks(ranks):
    for rank in ranks:
        assert 'powerSGD_hook with PowerSGDState' in rank['refused']


def test_a_rollback_brings_them_back(ranks):
    for rank in ranks:
        assert rank['rollbacks'] == 1
        assert rank['rollback'] == []
