"""Configs of mmpretrain, mmdetection and mmsegmentation run with their own
launchers and with that of the tests.

Nothing of the projects is changed: each run is a command line that a user
could type, in a process of its own.
"""

import json
import signal

import pytest
import torch
from real_runs import (
    DUMP,
    GROUPS,
    STRUCK,
    commands,
    differences,
    launch,
    make_data,
    read_rows,
    sites_of,
    skip_if_missing,
    what_is_left,
)
from recipes import RECIPES

from mmnanguard.report import read_events
from mmnanguard.safe_load import allow_mmengine_checkpoints


@pytest.fixture(scope='module')
def launched(tmp_path_factory):
    """Run all commands of a group; return them, their folder and the data."""
    groups = {}

    def once(group):
        if group not in groups:
            skip_if_missing(group)
            allow_mmengine_checkpoints()
            folder = tmp_path_factory.mktemp('runs')
            data_root = make_data(group, tmp_path_factory.mktemp('data'))
            runs = {}
            for name in GROUPS[group][0]:
                runs.update(commands(name, data_root, folder))
            groups[group] = launch(group, runs), folder, data_root
        return groups[group]

    return once


class Runs:
    """The runs of one recipe."""

    def __init__(self, name, done, folder, data_root):
        self.name, self.recipe = name, RECIPES[name]
        self._done, self._folder = done, folder
        self.data_root = data_root

    def __call__(self, run, status=0):
        """Return the run's folder; the run must have this exit status."""
        run = f'{self.name}-{run}'
        done = self._done[run]
        assert done['status'] == status, done['told'][-3000:]
        return self._folder / run


@pytest.fixture(params=RECIPES)
def runs(request, launched):
    (group,) = (g for g in GROUPS if request.param in GROUPS[g][0])
    return Runs(request.param, *launched(group))


def test_faults_leave_no_trace(runs):
    """The faulty runs equal the run that never had those iterations.

    One goes through the project's launcher, another through that of the tests,
    with all hooks.
    """
    oracle = what_is_left(runs('left_out'))
    assert ('.ema_state_dict.steps' in oracle) == runs.recipe.has_ema
    for leaf, value in oracle.items():
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all(), leaf
    assert differences(what_is_left(runs('faulty')), oracle) == []
    assert differences(what_is_left(runs('full')), oracle) == []


def test_without_faults_it_is_mmengine(runs):
    calm = what_is_left(runs('calm'))
    assert differences(calm, what_is_left(runs('plain'))) == []
    # Five updates more; frozen weights and constants stay.
    assert len(differences(calm, what_is_left(runs('left_out')))) > 20


@pytest.mark.parametrize('run', ['faulty', 'full'])
def test_rows_tell_what_happened(runs, run):
    weights = {
        leaf.split('.', 2)[2]
        for leaf in what_is_left(runs(run))
        if leaf.startswith('.state_dict.')
    }
    updates = read_rows(runs(run))
    causes = dict.fromkeys(('input', 'activation'), 'loss')
    sites = sites_of(runs.recipe)
    assert [(row['iter'], row['action'], row['cause']) for row in updates] == [
        (iteration, 'skip', f'{causes.get(site, site)}_nonfinite')
        for iteration, site in zip(STRUCK, sites)
    ]
    for row in (updates[0], updates[-1]):
        (param,) = row['params']
        assert param['name'] in weights
        assert param['count'] == 1

    images = set(map(str, runs.data_root.glob('*/*')))
    samples = [set(row['samples']) for row in updates]
    sizes = set(map(len, samples))
    assert sizes == {8 if runs.recipe.project == 'mmpretrain' else 2}
    assert set().union(*samples) <= images
    assert samples[0].isdisjoint(samples[1])
    assert samples[2].isdisjoint(samples[3])
    # 'full' rejects for the loss and says by which input.
    if run == 'full' and 'input' in sites:
        (row,) = read_rows(runs(run), 'input')
        assert row['samples'] == [updates[1]['samples'][0]]


def test_a_dump_is_enough_to_run_it_again(runs):
    """A replay in another process equals the autopsy in training."""
    runs('replay')
    (path,) = runs('full').glob(DUMP)
    row = json.loads(path.with_suffix('.json').read_text())
    live = read_rows(runs('full'), 'autopsy')[0]
    assert {key: row[key] for key in live} == live
    assert row['exact']
    assert not row['repeats']
    assert row['outputs']['backbone']['is_finite']


def test_killed_and_resumed(runs):
    """The project's own launcher resumes by `--resume` in the second epoch."""
    if runs.name != 'vit':
        pytest.skip('of one recipe')
    whole, killed = runs('whole'), runs('killed', -signal.SIGKILL)
    runs('resumed')
    assert differences(what_is_left(killed), what_is_left(whole)) == []
    rows = [
        [
            (row['iter'], row['cause'])
            for row in read_events(work_dir)
            if row['kind'] == 'update'
        ]
        for work_dir in (killed, whole)
    ]
    assert rows[0] == rows[1]
    assert [iteration for iteration, _ in rows[0]] == list(STRUCK)
