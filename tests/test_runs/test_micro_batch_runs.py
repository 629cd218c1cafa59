"""Runs in which single micro-batches are left out of their windows."""

import re

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from toys import (
    ToyNet,
    assert_finite,
    assert_same,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.core import TrainingHalted

LENGTH = 2
MICRO = dict(accumulative_counts=LENGTH, guard=dict(accumulation='microbatch'))
EMA = [dict(type='EMAHook', update_buffers=True, momentum=0.3)]


@OPTIM_WRAPPERS.register_module()
class OthersOnlyWrapper(OptimWrapper):
    """A wrapper as the oracle: losses are divided by the number that is not
    left out.
    """

    def __init__(self, *args, leave_out=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.leave_out = leave_out

    def scale_loss(self, loss):
        start = self._inner_count // LENGTH * LENGTH
        window = range(start + 1, start + LENGTH + 1)
        return loss / sum(iter_ not in self.leave_out for iter_ in window)


def averages(runner):
    tensors = {}
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            tensors.update(hook.ema_model.state_dict())
    return tensors


@MODELS.register_module()
class BackwardByHand(ToyNet):
    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self._run_forward(data, mode='loss')
        loss, log = self.parse_losses(losses)
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        if optim_wrapper.should_update():
            optim_wrapper.step()
            optim_wrapper.zero_grad()
        return log


@pytest.mark.parametrize('model', ['ToyNet', 'BackwardByHand'])
@pytest.mark.parametrize('site', ['input', 'grad', 'loss', 'buffer'])
def test_equals_the_run_of_the_others(tmp_path, site, model):
    """The averages of weights and of buffers are equal too."""
    struck = (1, 5, 9)  # the first of their windows
    faults = [dict(iter=n, site=site, value='nan') for n in struck]
    faulty = make_runner(
        tmp_path / 'faulty',
        wrapper(optimizer='AdamW', lr=0.01, **MICRO),
        default_hooks=guard_hooks(*faults),
        custom_hooks=EMA,
        model=dict(type=model),
    )
    faulty.train()
    oracle = make_runner(
        tmp_path / 'oracle',
        wrapper(
            'OthersOnlyWrapper',
            optimizer='AdamW',
            lr=0.01,
            accumulative_counts=LENGTH,
            leave_out=struck,
        ),
        leave_out=struck,
        custom_hooks=EMA,
        model=dict(type=model),
    )
    oracle.train()
    assert_same(faulty, oracle)
    assert_finite(faulty)
    left, right = averages(faulty), averages(oracle)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if not name.endswith('mask'):  # whose average MMEngine makes NaN
            assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize('length', [1, 2, 3])
def test_without_faults_equals_the_plain_run(tmp_path, length):
    """The data ends with a window that is short."""
    runners = []
    for type_ in ('OptimWrapper', 'NanGuardOptimWrapper'):
        keys = dict(accumulative_counts=length)
        if type_ != 'OptimWrapper':
            keys['guard'] = dict(accumulation='microbatch')
        runner = make_runner(
            tmp_path / type_,
            wrapper(type_, optimizer='AdamW', **keys),
            default_hooks=guard_hooks() if len(runners) else {},
            custom_hooks=EMA,
        )
        runner.train()
        runners.append(runner)
    assert_same(*runners)
    left, right = map(averages, runners)
    for name, tensor in left.items():
        if not name.endswith('mask'):  # whose average MMEngine makes NaN
            assert torch.equal(tensor, right[name]), name


def test_what_is_told(tmp_path):
    faults = [dict(iter=n, site='grad', value='nan') for n in (3, 7, 8)]
    runner = make_runner(
        tmp_path, wrapper(**MICRO), default_hooks=guard_hooks(*faults)
    )
    runner.train()
    partly, wholly = read_rows(runner)
    assert (partly['iter'], partly['action']) == (4, 'step')
    assert partly['cause'] == 'grad_nonfinite'
    assert partly['micro_batches'] == dict(
        total=2, left_out=[dict(rank=0, number=1, iter=3)]
    )
    # Those of the left out one only.
    assert partly['samples'] == [f'train/{n:06d}.jpg' for n in range(8, 12)]
    assert partly['params'][0]['name'] == 'backbone.0.weight'
    assert partly['consecutive_skips'] == partly['total_skips'] == 0
    assert 0.6 < partly['loss'] < 0.8  # its own, not half of it
    assert (wholly['iter'], wholly['action']) == (8, 'skip')
    assert len(wholly['micro_batches']['left_out']) == 2
    assert len(wholly['samples']) == 8
    assert wholly['total_skips'] == 1

    log = next(tmp_path.glob('*/*.log')).read_text()
    assert re.search(
        r"Iter 4: gradient of 'backbone.0.weight' is NaN \(1 of \d tensors\); "
        '1 of 2 micro-batches left out, the others made the update; 4 '
        'samples, named in its row\n',
        log,
    )
    assert re.search('Iter 8: .*; 2 of 2 micro-batches left out, upd', log)
    assert runner.message_hub.get_scalar('train/guard/left_out').current() == 1
    state = runner.optim_wrapper.state_dict()['guard']['state']
    assert state['num_left_out'] == 1


@pytest.mark.parametrize('proven_after', [0, 100])
def test_an_overflow_lowers_the_scale(tmp_path, proven_after):
    faults = [dict(iter=n, site='grad', value='inf') for n in (3, 6)]
    runner = make_runner(
        tmp_path,
        wrapper(
            'NanGuardAmpOptimWrapper',
            dtype='float16',
            # Dynamic: a static scale comes back after clean updates.
            loss_scale=dict(init_scale=1024.0),
            accumulative_counts=LENGTH,
            guard=dict(accumulation='microbatch', proven_after=proven_after),
        ),
        default_hooks=guard_hooks(*faults),
    )
    runner.train()
    rows = read_rows(runner)
    cause = 'scale_overflow' if proven_after else 'grad_nonfinite'
    assert [row['cause'] for row in rows] == [cause] * 2
    assert [row['action'] for row in rows] == ['step'] * 2
    assert [row['loss_scale']['after'] for row in rows] == [512, 256]
    state = runner.optim_wrapper.guard.state
    assert (state.num_steps, state.commits_since_growth) == (5, 3)
    scaler = runner.optim_wrapper.loss_scaler
    assert scaler.state_dict()['_growth_tracker'] == 2  # since the last
    assert_finite(runner)


def test_bad_input_is_left_out(tmp_path):
    data = make_data(40)
    data[13]['inputs'][0, 0, 0] = float('nan')  # in iteration 4
    hooks = guard_hooks()
    hooks['inputs'] = dict(type='mmnanguard.InputGuardHook')
    runner = make_runner(
        tmp_path,
        wrapper(**MICRO),
        default_hooks=hooks,
        model=dict(
            type='ToyNet', data_preprocessor=dict(type='BaseDataPreprocessor')
        ),
        train_dataloader=loader(data),
    )
    runner.train()
    (row,) = read_rows(runner)
    assert (row['cause'], row['action']) == ('input_nonfinite', 'step')
    assert row['micro_batches']['left_out'] == [dict(rank=0, number=2, iter=4)]
    (row,) = read_rows(runner, 'input')
    assert row['samples'] == ['train/000013.jpg']
    assert_finite(runner)


def test_bad_weights_are_no_micro_batchs_fault(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(**MICRO),
        default_hooks=guard_hooks(dict(iter=4, site='weight', value='nan')),
    )
    with pytest.raises(TrainingHalted, match='weight'):
        runner.train()
    assert read_rows(runner)[0]['cause'] == 'weight_nonfinite'


def test_an_autopsy_of_a_micro_batch(tmp_path):
    hooks = guard_hooks(dict(iter=4, site='activation', value='nan'))
    hooks['autopsy'] = dict(type='mmnanguard.AutopsyHook')
    hooks['dump'] = dict(type='mmnanguard.BatchDumpHook')
    data = make_data(40)
    data[13]['inputs'][0, 0, 0] = float('nan')
    hooks.pop('fire_drill')
    runner = make_runner(
        tmp_path,
        wrapper(**MICRO),
        default_hooks=hooks,
        train_dataloader=loader(data),
    )
    runner.train()
    (row,) = read_rows(runner, 'autopsy')
    assert row['phase'] == 'input'
    assert row['samples'] == ['train/000013.jpg']
    assert not row['exact']  # the others have moved the weights since
    assert read_rows(runner, 'dump') == []
    oracle = make_runner(
        tmp_path / 'oracle', wrapper(**MICRO), train_dataloader=loader(data)
    )
    oracle.train()
    assert_same(runner, oracle)


@MODELS.register_module()
class WithoutContext(ToyNet):
    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        losses = self._run_forward(data, mode='loss')
        loss, log = self.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log


def test_without_a_context_buffers_are_put_back(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(**MICRO),
        model=dict(type='WithoutContext'),
        default_hooks=guard_hooks(dict(iter=5, site='loss', value='nan')),
    )
    runner.train()
    assert int(runner.model.backbone[1].num_batches_tracked) == 9
    assert runner.optim_wrapper.guard.state.num_left_out == 1


@MODELS.register_module()
class TwoPasses(ToyNet):
    """A model that trains on each half of a batch as a micro-batch."""

    def train_step(self, data, optim_wrapper):
        for half in (slice(2), slice(2, None)):
            with optim_wrapper.optim_context(self):
                part = {key: value[half] for key, value in data.items()}
                losses = self._run_forward(part, mode='loss')
            loss, log = self.parse_losses(losses)
            optim_wrapper.update_params(loss)
        return log


@pytest.mark.parametrize('bad', [5, 9, 14])
def test_the_samples_are_those_of_the_iteration(tmp_path, bad):
    data = make_data(40)
    data[bad]['inputs'][0, 0, 0] = float('nan')
    runner = make_runner(
        tmp_path,
        wrapper(accumulative_counts=4, guard=dict(accumulation='microbatch')),
        model=dict(type='TwoPasses'),
        default_hooks=guard_hooks(),
        train_dataloader=loader(data),
    )
    runner.train()
    (row,) = read_rows(runner)
    first = bad // 4 * 4
    names = [f'train/{n:06d}.jpg' for n in range(first, first + 4)]
    assert row['samples'] == names
    assert row['micro_batches']['total'] == 4
    assert row['micro_batches']['left_out'][0]['iter'] == bad // 4 + 1
