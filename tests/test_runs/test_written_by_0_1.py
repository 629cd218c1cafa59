"""Files of version 0.1 are still read, resumed, replayed and reported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from ranks import finish, start
from toys import everything
from written_by_0_1.make import FOLDER, SAVED, guard_state, resume

from mmnanguard.core.rules import judge_scale
from mmnanguard.core.rules.judge_scale import is_innocent
from mmnanguard.hooks.recovery import rollback_hook
from mmnanguard.hooks.recovery.lower_rate import RateEvidence, lowered
from mmnanguard.numerics.checkpoints.load_plain import load_plain
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.report import load_run, print_reports, read_events, write_page
from mmnanguard.safe_load import allow_mmengine_checkpoints

ROOT = Path(__file__).parents[2]
ATTEMPTS = ('20260101_000000', '20260101_000100')
KINDS = dict(
    start=2,
    update=8,
    autopsy=3,
    input=1,
    dump=2,
    remedy=1,
    rollback=2,
    audit=1,
    halt=1,
)
DUMP = 'nanguard/dumps/iter_3_rank0.pt'
NEAR = dict(rtol=1e-2, atol=1e-4, equal_nan=True)


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(FOLDER / 'run', tmp_path / 'run'))


def written_rows(attempt):
    path = FOLDER / 'run' / attempt / 'nanguard' / 'events.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal_as_far_as_saved(now, saved):
    """Compare the saved values; later versions may keep more than 0.1 did."""
    if isinstance(saved, dict):
        for key, value in saved.items():
            assert_equal_as_far_as_saved(now[key], value)
    else:
        assert now == saved


def lower_for_good(present, factor, recovery):
    return lowered(present, factor, None)


def is_innocent_or_bad_loss(seen, state, policy):
    return not seen.loss_is_finite or is_innocent(seen, state, policy)


class StateOnArrival(Hook):
    """Copy what a resumed run begins with."""

    priority = 'LOWEST'

    def before_train(self, runner):
        tensors = everything(runner)
        self.tensors = {name: item.clone() for name, item in tensors.items()}
        self.guard = guard_state(runner)
        self.fp32 = [
            hook.patterns
            for hook in runner.hooks
            if type(hook).__name__ == 'Fp32ModulesHook'
        ]


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
    """Resume the run with the present version, as its second attempt."""
    if not HAS_CPU_SCALER:
        pytest.skip('float16 on a CPU needs torch>=2.3')
    work_dir = shutil.copytree(
        FOLDER / 'run', tmp_path_factory.mktemp('resumed') / 'run'
    )
    shutil.rmtree(work_dir / ATTEMPTS[1])
    arrival = StateOnArrival()
    checkpoint = work_dir / f'iter_{SAVED}.pth'
    with pytest.MonkeyPatch.context() as patch:
        # Version 0.1 lowered the learning rate at each rollback, for good.
        patch.setattr(RateEvidence, '__bool__', lambda evidence: True)
        patch.setattr(rollback_hook, 'lowered', lower_for_good)
        # It kept the loss scale beside a bad loss.
        patch.setattr(judge_scale, 'is_innocent', is_innocent_or_bad_loss)
        return resume(work_dir, checkpoint, 'resumed', arrival), arrival


def test_the_state_of_a_checkpoint_arrives(resumed):
    runner, arrival = resumed
    saved = json.loads((FOLDER / 'guard_states.json').read_text())['saved']
    assert saved['guard'].pop('attempt') == 1
    # A start counts as an attempt once it has trained.
    assert arrival.guard['guard'].pop('attempt') == 1
    assert runner.optim_wrapper.guard.attempt == 2
    assert_equal_as_far_as_saved(arrival.guard, saved)
    assert saved['guard']['clip']['mean'] > 0
    assert saved['guard']['state']['num_rollbacks'] == 1
    assert arrival.fp32 == [['backbone.0']]


def test_the_tensors_of_a_checkpoint_arrive(resumed):
    _, arrival = resumed
    allow_mmengine_checkpoints()
    saved = load_plain(FOLDER / 'run' / f'iter_{SAVED}.pth')
    tensors = dict(saved['state_dict'])
    for index, state in saved['optimizer']['state'].items():
        tensors[f'state {index} momentum_buffer'] = state['momentum_buffer']
    assert arrival.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(arrival.tensors[name], tensor), name


def test_a_resumed_run_goes_on_as_it_went_on_in_0_1(resumed):
    """The runs are equal up to roundings of another processor."""
    runner, _ = resumed
    states = json.loads((FOLDER / 'guard_states.json').read_text())
    now, then = guard_state(runner), states['continued']
    for key in ('num_updates', 'num_steps', 'total_skips', 'num_rollbacks'):
        assert now['guard']['state'][key] == then['guard']['state'][key]
    assert now['loss_scaler'] == then['loss_scaler']
    for key in ('mean', 'var'):
        memory = then['guard']['clip'][key]
        assert now['guard']['clip'][key] == pytest.approx(memory, 1e-2)
    tensors = torch.load(FOLDER / 'continued.pth')
    torch.testing.assert_close(everything(runner), tensors, **NEAR)


def test_a_resumed_run_reports_what_0_1_reported(resumed):
    runner, _ = resumed
    keys = ('kind', 'id', 'iter', 'action', 'cause', 'samples', 'to')
    rows = read_events(str(Path(runner.log_dir).parent))
    first, second = map(written_rows, ATTEMPTS)
    assert rows[: len(first)] == first
    for now, then in zip(rows[len(first) :], second):
        # Later versions have more keys.
        for key in then.keys() & set(keys):
            assert now[key] == then[key]
        assert now.keys() >= then.keys()


def test_rows_are_read(run):
    first, second = map(written_rows, ATTEMPTS)
    rows = read_events(str(run))
    assert rows == first + second
    kinds = [row['kind'] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == KINDS


def test_a_report_is_written(run, tmp_path, capsys):
    report = load_run(str(run))
    content = report.to_dict()
    assert not content['healthy']
    assert content['state'] == 'halted'
    assert content['last_iter'] == 25
    assert content['max_iters'] == 26
    assert content['attempts'] == 2
    assert content['rows'] == KINDS
    assert content['rejected'] == 7  # one more was a routine overflow
    assert content['causes'] == dict(
        loss_nonfinite=5,
        input_nonfinite=1,
        scale_overflow=1,
        weight_nonfinite=1,
    )
    assert {'loss', 'guard/amp_scale'} <= set(report.curves)
    print_reports([report])
    assert 'backbone.0' in capsys.readouterr().out
    write_page([report], tmp_path / 'page.html')
    assert 'backbone.0' in (tmp_path / 'page.html').read_text()


def test_a_dump_is_replayed_in_another_process(run):
    path = run / ATTEMPTS[0] / DUMP
    process = start([ROOT / 'tools' / 'replay.py', path, '--device', 'cpu'])
    output = finish(process)
    # The fault occurs again.
    assert process.returncode == 1, output
    autopsy = json.loads(path.with_suffix('.json').read_text())
    (live, *_) = [
        row for row in written_rows(ATTEMPTS[0]) if row['kind'] == 'autopsy'
    ]
    assert live['module'] == 'backbone.0'
    assert autopsy['exact']
    for key in ('id', 'phase', 'module', 'op', 'dtype', 'repeats', 'remedy'):
        assert autopsy[key] == live[key]


def test_a_checkpoint_is_scanned(run, tmp_path):
    report = tmp_path / 'scan.json'
    tool = ROOT / 'tools' / 'scan_checkpoints.py'
    process = start([tool, run, '--json', report])
    output = finish(process)
    assert process.returncode == 0, output
    (checkpoint,) = json.loads(report.read_text())['checkpoints']
    assert checkpoint['status'] == 'clean'
    assert checkpoint['iter'] == SAVED
