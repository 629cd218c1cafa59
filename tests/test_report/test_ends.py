"""The report says how a run ended, and whether it was guarded at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from event_rows import dump, halt, start, update, write_events, write_scalars
from mmengine.hooks import Hook
from toys import ToyNet, guard_hooks, make_runner, read_rows, wrapper

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


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError('no words')


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


def test_an_error_whose_text_cannot_be_made(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(),
        default_hooks=guard_hooks(),
        custom_hooks=[Raise('after', Speechless())],
    )
    with pytest.raises(Speechless):
        runner.train()
    (row,) = read_rows(runner, 'end')
    assert (row['how'], row['error']) == ('crashed', 'Speechless')


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
from toys import ToyNet, guard_hooks, make_runner, wrapper

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


@pytest.mark.parametrize(
    ('losses', 'since'),
    [
        ([87.0, 2e3, 9e6, 4e7, 1e34], 3),
        ([87.0, 9e6, 90.0, 4e7, 1e12], 4),
        # It came down again.
        ([87.0, 9e6, 4e7, 90.0, 80.0], None),
        # A value that an agent learns, and a loss that began at almost 0.
        ([1.0, 10.0, 1e2, 1e3, 1e4], None),
        ([1e-9, 0.1, 0.5, 1.0, 2.0], None),
        ([-3.0, -9e6, -4e7, -1e9, -1e12], None),
    ],
)
def test_a_loss_that_exploded_and_stayed_finite(tmp_path, losses, since):
    folder = tmp_path / '20260101_000000'
    write_events(folder, [start(), end(64, 'finished', '')])
    write_scalars(
        folder, [dict(iter=i, loss=x) for i, x in enumerate(losses, 1)]
    )
    verdict = load_run(str(tmp_path)).verdict
    assert verdict.is_healthy == (since is None)
    assert verdict.since == since
    if since is not None:
        assert 'the loss has exploded: ' in verdict.sentence
        assert 'above its start: 87 at first' in verdict.sentence
        assert f'before iteration {since}' in verdict.steps[0].text
        assert not verdict.steps[0].code


@pytest.mark.parametrize(
    ('first', 'last', 'sentence'),
    [
        (1e6, 5e13, 'the loss has exploded: 5e+07 times above its start'),
        (0.0, 5e13, 'the loss has exploded: 0 at first'),
        # An agent may learn such values.
        (5.0, 2e4, 'not sick, but the loss ended 4,000 times above its start'),
        (2e13, 3e13, 'healthy'),
        (1e-4, 1.0, 'healthy'),
        (-3.0, -4e7, 'not sick, but the loss ended 1e+07 times below'),
        (-0.01, -2e3, 'healthy'),
        (-4.0, 0.7, 'healthy'),
    ],
)
def test_the_losses_at_the_end(tmp_path, first, last, sentence):
    losses = dict(
        first_losses={'default': first}, last_losses={'default': last}
    )
    row = {**end(64, 'finished', ''), **losses}
    write_events(tmp_path / '20260101_000000', [start(), row])
    verdict = load_run(str(tmp_path)).verdict
    assert verdict.sentence.startswith(sentence)
    assert verdict.is_healthy == ('exploded' not in sentence)


def test_the_losses_of_adversaries_may_rise(tmp_path):
    losses = dict(
        first_losses={'gen': 0.7, 'disc': 0.7},
        last_losses={'gen': 40.0, 'disc': 1e-3},
    )
    row = {**end(64, 'finished', ''), **losses}
    write_events(tmp_path / '20260101_000000', [start(), row])
    verdict = load_run(str(tmp_path)).verdict
    assert verdict.sentence.startswith('healthy')


def test_one_of_two_optimizers_is_not_guarded():
    rows = [start(unguarded={'disc': 'OptimWrapper'})]
    verdict = judge(summarize(rows, 9))
    assert "optimizer 'disc' is run by OptimWrapper" in verdict.sentence
    # It may still run: nothing says that it is to be resumed.
    assert [step.text for step in verdict.steps] == [
        'guard it, and go on from a clean checkpoint'
    ]


class PastTheWrapper(ToyNet):
    """Steps the optimizer itself."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self(**data, mode='loss')
        sum(losses.values()).backward()
        optim_wrapper.optimizer.step()
        optim_wrapper.optimizer.zero_grad()
        return losses


class Frozen(ToyNet):
    """Lets no gradient through."""

    def forward(self, *args, **kwargs):
        losses = super().forward(*args, **kwargs)
        return {
            name: loss.detach().requires_grad_()
            for name, loss in losses.items()
        }


def report_of(model, work_dir):
    runner = make_runner(
        work_dir, wrapper(), model=model, default_hooks=guard_hooks()
    )
    runner.train()
    return load_run(str(work_dir)).verdict


def test_a_run_that_bypasses_the_guard_is_not_healthy(tmp_path):
    verdict = report_of(PastTheWrapper(), tmp_path)
    assert not verdict.is_healthy
    assert verdict.sentence.startswith(
        'not guarded: SGD.step() was called past the guard; next: '
    )
    assert "Call the wrapper's update_params" in verdict.steps[0].detail


def test_a_run_that_trains_nothing_says_so(tmp_path):
    sentence = report_of(Frozen(), tmp_path).sentence
    assert 'but at iteration 4 NO PARAMETER HAS A GRADIENT: 4' in sentence


def test_a_bypass_ends_with_its_attempt():
    row = dict(schema=1, kind='bypass', iter=3, message='NO. Do it.')
    rows = [start(), row, end(9, 'finished', '')]
    assert judge(summarize(rows, 9)).sentence.startswith('not guarded: NO;')
    assert judge(summarize([*rows, start(attempt=2)], 9)).is_healthy


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


def test_commands_name_files_by_the_path_that_was_given(tmp_path, monkeypatch):
    config = tmp_path / 'run' / '1' / 'vis_data' / 'config.py'
    config.parent.mkdir(parents=True)
    config.touch()
    write_events(tmp_path / 'run' / '1', [start(), end(5)])
    monkeypatch.chdir(tmp_path)
    command = load_run('run').verdict.steps[0].code
    assert ' run/1/vis_data/config.py --work-dir run ' in command
