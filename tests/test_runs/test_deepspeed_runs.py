"""Runs with MMEngine's DeepSpeedStrategy: hooks, and a resume after a kill.

Two ranks each, in processes of their own.
"""

import json
from pathlib import Path

import pytest
import torch
from deepspeed_engine import differing
from ranks import finish, launch, needs_deepspeed, start_by_hand

pytestmark = needs_deepspeed
JOB = 'deepspeed_runs_job.py'


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('runs')
    launch(JOB, work_dir, 'hooks')
    return [
        json.loads((work_dir / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]


def test_runs_with_all_hooks_leave_no_trace(ranks):
    for rank in ranks:
        assert len(rank['runs']) == 5
        for run in rank['runs']:
            assert run['differing'] == [], run['kind']
            assert run['skipped'] == 2


def test_all_hooks_write_their_rows(ranks):
    for run in ranks[0]['runs']:
        (path,) = Path(run['work_dir']).glob('*/nanguard/events.jsonl')
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kinds = [row['kind'] for row in rows]
        assert kinds[0] == 'start'
        assert kinds[-1] == 'end'
        assert kinds.count('update') == 2
        assert kinds.count('input') == 1
        assert kinds.count('dump') == 2
        first, second = [row for row in rows if row['kind'] == 'update']
        assert first['ranks'] == second['ranks'] == [1]
        assert second['cause'] == 'input_nonfinite'
        modules = {t['name'].split('.')[0] for t in first['params']}
        assert modules <= {'body', 'norm', 'head'}
        # With ZeRO 3 a window is not run again.
        has_autopsies = run['kind'][0] < 3
        assert ('autopsy' in kinds) is has_autopsies
        assert (Path(run['work_dir']) / 'iter_12.pth').is_dir()


def test_hooks_that_cannot_work_say_why(ranks):
    for rank in ranks:
        assert 'weights of an engine' in rank['refused']['RollbackHook']
        assert 'ZeRO 3' in rank['refused']['AutopsyHook']
        for name in ('NanGuardOptimWrapper', 'NanGuardAmpOptimWrapper'):
            assert 'DeepSpeedOptimWrapper' in rank['refused'][name]


@pytest.mark.parametrize(('stage', 'precision'), [(1, 'fp16'), (3, 'bf16')])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path, stage, precision
):
    launch(JOB, tmp_path, 'resume', 'whole', stage, precision)
    killed = start_by_hand(JOB, tmp_path, 'resume', 'killed', stage, precision)
    for process in killed:
        finish(process)
        assert process.returncode == -9
    launch(JOB, tmp_path, 'resume', 'resumed', stage, precision)
    for rank in range(2):
        whole = torch.load(tmp_path / f'whole_{rank}.pt', weights_only=False)
        resumed = torch.load(
            tmp_path / f'resumed_{rank}.pt', weights_only=False
        )
        assert len(whole['kept']) > 5
        # DeepSpeed saves the buffers of rank 0 for all.
        if rank == 1:
            del whole['kept']['mean']
        assert differing(whole['kept'], resumed['kept']) == []
        for key in ('state', 'scale', 'skipped'):
            assert resumed['facts'][key] == whole['facts'][key], key
        assert resumed['facts']['attempt'] == 2
        assert whole['facts']['state']['total_skips'] == 2
