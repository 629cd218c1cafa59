"""The report says how a run ended, and whether it was guarded at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from event_rows import dump, halt, start, update, write_events, write_scalars
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard._support.process_identity import is_alive, this_process
from mmnanguard.report import load_run
from mmnanguard.report.assessment import judge
from mmnanguard.report.summarize import summarize

TESTS = Path(__file__).parents[1]


def end(iter_, how='crashed', error='RuntimeError: CUDA out of memory'):
    return dict(schema=1, kind='end', how=how, iter=iter_, error=error)


class Raise(Hook):
    """Raise an error at a stage of iteration 6, or after it."""

    def __init__(self, stage, error):
        self.stage, self.error = stage, error

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.act('before', runner)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.act('after', runner)

    def act(self, stage, runner):
        if stage == self.stage and runner.iter == 5:
            raise self.error


@pytest.mark.parametrize('stage', ['before', 'after'])
@pytest.mark.parametrize(
    ('error', 'story'),
    [
        (RuntimeError('CUDA out of memory\nTried to'), 'crashed'),
        (KeyboardInterrupt(), 'interrupted'),
    ],
)
def test_an_exception(tmp_path, stage, error, story):
    runner = make_runner(
        tmp_path,
        wrapper(),
        default_hooks=guard_hooks(),
        custom_hooks=[Raise(stage, error)],
    )
    with pytest.raises(type(error)):
        runner.train()
    report = load_run(str(tmp_path))
    assert report.state == story
    assert not report.verdict.is_healthy
    assert report.verdict.sentence.startswith(f'{story} at iteration 6 by ')
    assert 'healthy' not in report.verdict.sentence
    assert 'Tried to' not in report.verdict.sentence
    (row,) = read_rows(runner, 'end')
    assert row['error'] == ': '.join(
        filter(None, [type(error).__name__, str(error).split('\n')[0]])
    )


def test_an_error_that_was_handled_before_is_no_crash(tmp_path):
    runner = make_runner(tmp_path, wrapper(), default_hooks=guard_hooks())
    try:
        raise RuntimeError('an earlier attempt')
    except RuntimeError:
        runner.train()
    report = load_run(str(tmp_path))
    assert (report.state, report.verdict.is_healthy) == ('finished', True)


def test_a_killed_process_and_one_that_runs(tmp_path):
    script = f"""
import sys, time
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, wrapper

class Wait(Hook):
    priority = 'LOWEST'
    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        if runner.iter == 5:
            print('here', flush=True)
            sys.stdin.read()

hooks = guard_hooks()
hooks['logger'] = dict(type='LoggerHook', interval=1)
make_runner({str(tmp_path)!r}, wrapper(), default_hooks=hooks,
            custom_hooks=[Wait()]).train()
"""
    with subprocess.Popen(
        [sys.executable, '-c', script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            for line in process.stdout:
                if line == b'here\n':
                    break
            report = load_run(str(tmp_path))
            assert report.state == 'running'
            assert report.verdict.is_healthy
            os.kill(process.pid, signal.SIGKILL)
            # Not waited for: a zombie has ended as well.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            report = load_run(str(tmp_path))
            assert report.state == 'lost'
            assert report.verdict.sentence.startswith(
                'ended without saying so at iteration 6; next: look for what'
            )
        finally:
            process.kill()


def test_another_process_of_the_same_number():
    me = this_process()
    assert is_alive(me) is True
    assert is_alive(dict(me, begin=me['begin'] + 1)) is False
    # Of another machine or container nothing is known.
    assert is_alive(dict(me, host='elsewhere')) is None
    assert is_alive(dict(me, namespace='pid:[1]')) is None
    for odd in (None, 3, {}, dict(me, pid='x'), dict(me, pid=None)):
        assert is_alive(odd) is None


@pytest.mark.parametrize('first', [4, 7, 20])
def test_a_resumed_run_has_no_end(first):
    rows = [start(), end(6), start(first, attempt=2)]
    assert judge(summarize(rows, 1000)).is_healthy


def test_bad_updates_are_told_beside_the_crash():
    rows = [
        start(),
        *(update(i, name='neck.bias') for i in range(100, 110)),
        end(111),
    ]
    verdict = judge(summarize(rows, 111))
    assert verdict.sentence.startswith('crashed at iteration 111')
    assert "of 'neck.bias'" in ' '.join(verdict.reasons[1:])
    # The end of a halted run is the halt.
    verdict = judge(summarize([start(), update(9), halt(9), end(9)], 9))
    assert verdict.sentence.startswith('sick since iteration 9: halted')


def test_a_short_run_has_no_200_updates():
    rows = [start(), *(update(i) for i in range(3, 60, 10))]
    sentence = judge(summarize(rows, 64)).sentence
    assert '6 of the last 64 updates were rejected' in sentence


def test_unguarded(tmp_path):
    folder = tmp_path / '20260101_000000'
    write_events(folder, [start(run='', guards={}), end(64, 'finished', '')])
    nan = float('nan')
    losses = [2.0, nan, 1.0, nan, nan]
    write_scalars(
        folder, [dict(iter=i, loss=x) for i, x in enumerate(losses, 1)]
    )
    report = load_run(str(tmp_path))
    sentence = report.verdict.sentence
    assert not report.verdict.is_healthy
    assert sentence.startswith('not guarded: ')
    assert 'the logged loss is not finite from iteration 4 to' in sentence
    assert sentence.endswith(
        'next: guard it, and go on from a clean checkpoint'
    )
    assert 'healthy' not in sentence


def test_one_of_two_optimizers_is_not_guarded():
    rows = [start(unguarded={'disc': 'OptimWrapper'})]
    verdict = judge(summarize(rows, 9))
    assert "optimizer 'disc' is run by OptimWrapper" in verdict.sentence
    # It may still run: nothing says that it is to be resumed.
    assert [step.text for step in verdict.steps] == [
        'guard it, and go on from a clean checkpoint'
    ]


def test_unguarded_run(tmp_path):
    runner = make_runner(
        tmp_path, wrapper('OptimWrapper'), default_hooks=guard_hooks()
    )
    runner.train()
    report = load_run(str(tmp_path))
    assert report.state == 'finished'
    assert report.verdict.sentence.startswith(
        "not guarded: optimizer 'default' is run by OptimWrapper"
    )


def checkpoint_in(folder, *names):
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ('names', 'chosen'),
    [
        (('iter_90.pth', 'iter_100.pth', 'iter_9.pth'), 'iter_90.pth'),
        (('epoch_3.pth', 'epoch_2.pth', 'epoch_10.pth'), 'epoch_2.pth'),
        # Epoch 2 ended after iteration 60.
        (('epoch_2.pth', 'iter_50.pth'), 'epoch_2.pth'),
        (('epoch_2.pth', 'iter_70.pth'), 'iter_70.pth'),
        (('best_acc_epoch_1.pth', 'other.pth'), 'best_acc_epoch_1.pth'),
        (('iter_100.pth', 'epoch_3.pth', 'latest.pth'), None),
    ],
)
def test_a_replay_gets_weights_that_are_older(tmp_path, names, chosen):
    folder = tmp_path / '20260101_000000'
    row = dict(update(100, action='halt'), epoch=3, batch_idx=39)
    lost = dict(dump(100, needs=('checkpoint',)), checkpoint='/gone/x.pth')
    write_events(folder, [start(), row, lost, halt(100)])
    checkpoint_in(tmp_path, *names)
    # These are newer than the fault.
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / names[-1]))
    (row,) = load_run(str(tmp_path)).summary.others['dump']
    expected = chosen and str(tmp_path / chosen)
    assert row['checkpoint'] == expected
