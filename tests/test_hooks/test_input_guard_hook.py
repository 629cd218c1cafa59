"""Bad inputs are rejected by name or repaired, or they stop the run."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn
from torch.optim import SGD
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

from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.hooks import InputGuardHook
from mmnanguard.hooks.inputs import input_guard_hook
from mmnanguard.optim import NanGuardOptimWrapper

BAD = 'train/000009.jpg'  # the second sample of the third iteration


@MODELS.register_module()
class Stack(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=torch.stack(list(data['inputs'])))


def train(
    work_dir,
    bad=(9,),
    stack=True,
    value=math.nan,
    hook=None,
    hooks=None,
    faults=(),
    optim=None,
    model=None,
    data=None,
    max_iters=6,
    run=True,
    **changes,
):
    """Train with ``hook`` as arguments of InputGuardHook, or with several."""
    if data is None:
        data = make_data(4 * max_iters)
    for index in bad:
        data[index]['inputs'][0, 0, 0] = value
    default_hooks = guard_hooks(*faults)
    for index, keys_of_hook in enumerate(hooks or [hook] * (hook is not None)):
        default_hooks[f'input_guard_{index}'] = dict(
            type='mmnanguard.InputGuardHook', **keys_of_hook
        )
    for name in changes.pop('without', ()):
        del default_hooks[name]
    default_hooks.update(changes.pop('default_hooks', {}))
    if model is None:
        model = dict(type='ToyNet')
        if stack:
            model['data_preprocessor'] = dict(type='Stack')
    runner = make_runner(
        work_dir,
        wrapper() if optim is None else optim,
        model=model,
        train_dataloader=loader(data),
        default_hooks=default_hooks,
        max_iters=max_iters,
        **changes,
    )
    if run:
        runner.train()
    return runner


def causes(runner):
    return {row['iter']: row['cause'] for row in read_rows(runner)}


def log(runner):
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


# Reject


@pytest.mark.parametrize('stack', [True, False], ids=['batch', 'list'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_reject_names_the_sample(tmp_path, stack, value):
    keys = dict(stack=stack, value=value)
    runner = train(tmp_path / 'faulty', hook={}, **keys)
    (row,) = read_rows(runner)
    assert (row['iter'], row['cause']) == (3, 'input_nonfinite')
    assert read_rows(runner, 'input') == [
        {
            'schema': 1,
            'kind': 'input',
            'id': row['id'],
            'action': 'reject',
            'iter': 3,
            'ranks': [0],
            'num_samples': 1,
            'samples': [BAD],
            'keys': {'inputs': [BAD]},
        }
    ]
    assert (
        f'Iter 3: input is not finite in 1 sample (inputs): {BAD}\n'
    ) in log(runner)
    assert_same(runner, train(tmp_path / 'oracle', leave_out=(3,), **keys))


def test_many_samples_are_named_in_the_row_and_a_few_on_the_console(tmp_path):
    runner = train(tmp_path, bad=[4, 5, 6, 7], hook={})
    (row,) = read_rows(runner, 'input')
    names = [f'train/{index:06d}.jpg' for index in (4, 5, 6, 7)]
    assert (row['samples'], row['num_samples']) == (names, 4)
    said = f'4 samples (inputs): {", ".join(names[:3])} and 1 more\n'
    assert said in log(runner)


@pytest.mark.parametrize('bad', [[9], [5, 10], [8, 9]])
def test_the_bad_micro_batch_of_a_window_is_named(tmp_path, bad):
    """Samples 4 to 11 are in one window, which is iterations 2 and 3."""
    optim = wrapper(accumulative_counts=2)
    keys = dict(optim=optim, max_iters=6, data=make_data(24))
    bad = [index + 4 for index in bad]
    runner = train(tmp_path / 'faulty', bad=bad, hook={}, **keys)
    assert causes(runner) == {4: 'input_nonfinite'}
    (row,) = read_rows(runner, 'input')
    assert row['samples'] == [f'train/{index:06d}.jpg' for index in bad]
    oracle = train(
        tmp_path / 'oracle',
        bad=(),
        **dict(keys, data=make_data(24)),
        leave_out=(3, 4),
    )
    assert_same(runner, oracle)


def test_reject_in_float16(tmp_path):
    optim = wrapper(
        'NanGuardAmpOptimWrapper', dtype='float16', loss_scale='dynamic'
    )
    runner = train(tmp_path, hook={}, optim=optim)
    (row,) = [
        row for row in read_rows(runner) if row['cause'] == 'input_nonfinite'
    ]
    assert row['iter'] == 3
    scale = row['loss_scale']
    assert scale['before'] == scale['after']
    assert read_rows(runner, 'input')[0]['id'] == row['id']


def test_a_clean_run_is_the_plain_one(tmp_path):
    assert_same(
        train(tmp_path / 'with', bad=(), hook={}),
        train(tmp_path / 'without', bad=()),
    )


def test_keys(tmp_path):
    data = make_data(24)
    for item in data:
        item['data_samples'].set_data(dict(weight=torch.ones(2)))
    keys = ['data_samples.weight']
    runner = train(tmp_path / 'a', hook=dict(keys=keys), data=data)
    assert causes(runner) == {3: 'loss_nonfinite'}
    data[17]['data_samples'].weight[1] = math.nan
    runner = train(tmp_path / 'b', bad=(), hook=dict(keys=keys), data=data)
    assert causes(runner)[5] == 'input_nonfinite'
    (row,) = read_rows(runner, 'input')
    assert row['keys'] == {keys[0]: ['train/000017.jpg']}


def test_a_fire_drill(tmp_path):
    """The drill strikes the preprocessor's output, after its other hooks."""
    fault = dict(iter=3, site='input', value='inf')
    runner = train(tmp_path, bad=(), hook={}, faults=[fault])
    assert causes(runner) == {3: 'input_nonfinite'}
    assert read_rows(runner, 'input')[0]['samples'] == ['train/000008.jpg']


# Sanitize


def test_sanitize_equals_a_run_on_mended_data(tmp_path):
    hook = dict(action='sanitize', nan=0.5, interval=2)
    runner = train(tmp_path / 'a', hook=hook)
    assert read_rows(runner) == []
    assert_finite(runner)
    assert_same(runner, train(tmp_path / 'b', value=0.5))


def test_sanitize_is_told_once_an_interval_and_at_the_end(tmp_path):
    """Iterations 1, 3, 4 and 9 of 9 are bad."""
    runner = train(
        tmp_path,
        bad=[2, 8, 9, 10, 11, 12, 33],
        value=math.inf,
        hook=dict(action='sanitize', interval=4),
        max_iters=9,
    )
    first, last = read_rows(runner, 'input')
    name = 'train/0000{:02d}.jpg'.format
    names = [name(index) for index in (2, 8, 9, 10, 11, 12)]
    run = read_rows(runner, 'start')[0]['run']
    assert first == {
        'schema': 1,
        'kind': 'input',
        'id': f'{run}-4-input',
        'action': 'sanitize',
        'iter': 4,
        'since': 1,
        'ranks': [0],
        'num_samples': 6,
        'samples': names,
        'keys': {'inputs': names},
    }
    assert (last['since'], last['iter']) == (9, 9)
    assert last['samples'] == [name(33)]
    text = log(runner)
    assert text.count('input was not finite') == 2
    assert (
        'Iter 1 to 4: input was not finite in 6 samples (inputs): '
        f'{", ".join(names[:3])} and 3 more; mended and trained on\n'
    ) in text
    assert_finite(runner)


def test_sanitize_reads_nothing_in_between(tmp_path, monkeypatch):
    """Sanitizing keeps no more than the checks of one interval."""
    lengths = []

    def counted(looks):
        lengths.append(len(looks))
        return bad_samples(looks)

    bad_samples = input_guard_hook.bad_samples
    monkeypatch.setattr(input_guard_hook, 'bad_samples', counted)
    train(tmp_path, hook=dict(action='sanitize', interval=4), max_iters=10)
    assert lengths == [4, 4, 2]


def test_a_row_lists_no_more_than_a_hundred(tmp_path):
    runner = train(
        tmp_path, bad=range(120), hook=dict(action='sanitize'), max_iters=30
    )
    (row,) = read_rows(runner, 'input')
    assert (len(row['samples']), row['num_samples']) == (100, 120)
    assert len(row['keys']['inputs']) == 100
    assert 'in 120 samples (inputs): train/000000.jpg, ' in log(runner)
    assert 'and 117 more' in log(runner)


def test_sanitize_needs_no_guard(tmp_path):
    runner = train(
        tmp_path,
        hook=dict(action='sanitize', interval=2),
        optim=wrapper('OptimWrapper'),
        without=['nan_guard'],
    )
    assert_finite(runner)
    (row,) = read_rows(runner, 'input')
    assert (row['since'], row['iter'], row['samples']) == (3, 4, [BAD])


def test_what_sanitize_puts_for_inf_does_not_overflow(tmp_path):
    runner = train(
        tmp_path / '0', value=math.inf, hook=dict(action='sanitize')
    )
    assert causes(runner) == {}
    hook = dict(action='sanitize', posinf=None)
    runner = train(tmp_path / 'extreme', value=math.inf, hook=hook)
    assert list(causes(runner)) == [3]


# Halt


def test_halt(tmp_path):
    with pytest.raises(TrainingHalted, match=BAD) as caught:
        train(tmp_path / 'faulty', hook=dict(action='halt'))
    assert caught.value.event.iter == 3
    assert "action='reject' or 'sanitize'" in str(caught.value)
    assert 'rank' not in str(caught.value)


def test_halt_leaves_no_trace_and_a_row(tmp_path):
    runner = train(tmp_path / 'faulty', hook=dict(action='halt'), run=False)
    with pytest.raises(TrainingHalted):
        runner.train()
    (row,) = read_rows(runner, 'input')
    assert (row['action'], row['samples']) == ('halt', [BAD])
    assert_same(
        runner,
        train(tmp_path / 'oracle', data=make_data(24), bad=(), max_iters=2),
    )


def test_a_flag_of_somebody_else_is_not_told(tmp_path):
    class Raise(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter + 1 == 4:
                flag = torch.tensor(True)
                runner.optim_wrapper.add_fact('input', flag)

    runner = train(
        tmp_path, bad=(), hook=dict(action='halt'), custom_hooks=[Raise()]
    )
    assert causes(runner) == {4: 'input_nonfinite'}
    assert read_rows(runner, 'input') == []


# What cannot work


@pytest.mark.parametrize('action', ['reject', 'halt', 'sanitize'])
def test_keys_that_nothing_has(tmp_path, action):
    hook = dict(action=action, keys=['inputs', 'data_samples.gt'])
    with pytest.raises(
        GuardConfigError,
        match=r"keys has 'data_samples.gt', but .* They are in: inputs\.",
    ):
        train(tmp_path, hook=hook)


@pytest.mark.parametrize('action', ['reject', 'halt'])
def test_nothing_that_rejects(tmp_path, action):
    said = f"action='{action}' needs .* mmnanguard.NanGuardOptimWrapper"
    with pytest.raises(GuardConfigError, match=said):
        train(
            tmp_path, hook=dict(action=action), optim=wrapper('OptimWrapper')
        )


def test_nothing_that_hands_out_events(tmp_path):
    cure = "nan_guard=dict(type='mmnanguard.NanGuardHook')"
    runner = train(tmp_path / 'a', hook={}, without=['nan_guard'])
    assert 'names no samples without NanGuardHook' in log(runner)
    assert cure in log(runner)
    assert_finite(runner)
    assert runner.optim_wrapper.guard.state.total_skips == 1
    with pytest.raises(GuardConfigError, match='cannot halt without'):
        train(tmp_path / 'b', hook=dict(action='halt'), without=['nan_guard'])


@MODELS.register_module()
class Raw(ToyNet):
    """A model that does not use its preprocessor."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**data, mode='loss')
        loss, log_vars = self.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log_vars


def test_a_preprocessor_that_is_not_called_is_said_once(tmp_path):
    runner = train(tmp_path, hook={}, model=dict(type='Raw'))
    assert log(runner).count('does not call the data preprocessor') == 1


def test_no_preprocessor(tmp_path):
    runner = train(tmp_path, hook={}, run=False)
    runner.model.data_preprocessor = None
    with pytest.raises(GuardConfigError, match='ToyNet has no data_prep'):
        runner.train()


# What is left as it was


@MODELS.register_module()
class Validated(ToyNet):
    """A model that keeps the arguments of its forward."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.validated = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'predict':
            self.validated.append(inputs.clone())
            return data_samples
        return super().forward(inputs, data_samples, mode)


@pytest.mark.parametrize('action', ['reject', 'sanitize', 'halt'])
def test_validation_is_left_alone(tmp_path, action):
    validation = loader(make_data(4))
    validation['dataset'][1]['inputs'][0, 0, 0] = math.nan
    model = Validated(Stack())
    runner = train(
        tmp_path,
        bad=(),
        hook=dict(action=action),
        model=model,
        train_cfg=dict(type='LeaveOutLoop', max_iters=6, val_interval=2),
        val_dataloader=validation,
        val_cfg=dict(),
        val_evaluator=[],
    )
    assert len(model.validated) == 3
    for inputs in model.validated:
        assert torch.isnan(inputs[1, 0, 0, 0])
        assert torch.isnan(inputs).sum() == 1
    assert causes(runner) == {}
    assert read_rows(runner, 'input') == []
    runner.val()
    assert len(model.validated) == 4


def num_hooks(runner):
    return len(runner.model.data_preprocessor._forward_hooks)


@pytest.mark.parametrize('action', ['reject', 'sanitize'])
def test_preprocessors_are_left_as_they_were(tmp_path, action):
    runner = train(tmp_path, hook=dict(action=action))
    assert num_hooks(runner) == 0
    assert 'forward' not in vars(runner.model.data_preprocessor)


class Break(Hook):
    def __init__(self, iter_):
        self.iter = iter_

    def after_train_iter(self, runner, batch_idx, **_):
        if runner.iter + 1 == self.iter:
            raise ArithmeticError


@pytest.fixture
def looks(monkeypatch):
    """Record the arguments of each InputLook."""
    looks = []

    class Counted(input_guard_hook.InputCheck):
        def __init__(self, *args):
            looks.append(args)
            super().__init__(*args)

    monkeypatch.setattr(input_guard_hook, 'InputCheck', Counted)
    return looks


def break_off(work_dir):
    """Train until an exception, which MMEngine reports to no hook."""
    runner = train(
        work_dir,
        hook=dict(action='sanitize'),
        custom_hooks=[Break(2)],
        run=False,
        data=make_data(60),
    )
    runner.hooks.sort(key=lambda hook: not isinstance(hook, Break))
    with pytest.raises(ArithmeticError):
        runner.train()
    assert num_hooks(runner) == 0
    return runner


def test_a_run_after_one_that_was_broken_off(tmp_path, looks):
    broken = break_off(tmp_path / 'a')
    assert len(looks) == 2
    hook = dict(action='sanitize')
    runner = train(tmp_path / 'b', hook=hook, model=broken.model)
    assert (len(looks), num_hooks(runner)) == (2 + 6, 0)
    train(tmp_path / 'c', model=broken.model)
    assert len(looks) == 2 + 6


def test_a_run_that_goes_on_after_it_was_broken_off(tmp_path, looks):
    runner = break_off(tmp_path)
    del runner.hooks[0]
    runner.train()  # again from its second iteration
    assert (len(looks), num_hooks(runner)) == (2 + 5, 0)


@pytest.mark.parametrize('action', ['reject', 'sanitize'])
def test_what_is_not_trained_on_is_not_told(tmp_path, action):
    class Extra(Hook):
        """A hook that reads data in training mode, as PreciseBN does."""

        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, **_):
            batch = dict(inputs=[torch.full((3, 8, 8), math.nan)] * 4)
            runner.model.data_preprocessor(batch, True)

    runner = train(
        tmp_path,
        bad=(),
        hook=dict(action=action),
        custom_hooks=[Extra()],
        optim=wrapper(accumulative_counts=2),
    )
    assert causes(runner) == {}
    assert read_rows(runner, 'input') == []


def test_two_of_them(tmp_path):
    data = make_data(24)
    for item in data:
        item['data_samples'].set_data(dict(weight=torch.ones(2)))
    data[17]['data_samples'].weight[1] = math.nan
    runner = train(
        tmp_path,
        data=data,
        hooks=[
            dict(action='sanitize', keys=['data_samples']),
            dict(action='reject', keys=['inputs']),
        ],
    )
    assert causes(runner) == {3: 'input_nonfinite'}
    rejected, mended = read_rows(runner, 'input')
    assert (rejected['action'], mended['action']) == ('reject', 'sanitize')
    assert rejected['keys'] == {'inputs': [BAD]}
    assert mended['keys'] == {'data_samples.weight': ['train/000017.jpg']}
    assert num_hooks(runner) == 0


# Together with others


def test_a_model_that_runs_a_dump_again(tmp_path):
    """A replay calls only ``before_train``, and needs the batch trained on."""
    runner = train(tmp_path, hook={}, run=False)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    hooks = [
        InputGuardHook(action='reject'),
        InputGuardHook(action='sanitize', keys=['inputs'], nan=0.5),
        InputGuardHook(action='sanitize', keys=['data_samples']),
        InputGuardHook(action='halt'),
    ]
    for hook in hooks:
        hook.before_train(runner)
    assert num_hooks(runner) == 4
    (sample,) = make_data(1)
    sample['inputs'][0, 0, 0] = math.nan
    sample['data_samples'].weight = torch.tensor(math.inf)
    batch = dict(
        inputs=[sample['inputs']], data_samples=[sample['data_samples']]
    )
    output = runner.model.data_preprocessor(batch, True)
    assert output['inputs'][0, 0, 0, 0] == 0.5
    assert output['data_samples'][0].weight == 0.0
    assert runner.optim_wrapper.guard.facts == {}


def test_a_replay_is_not_looked_at(tmp_path, looks):
    """An autopsy runs the batch again; the next update has another batch."""
    runner = train(
        tmp_path,
        hook={},
        default_hooks=dict(autopsy=dict(type='mmnanguard.AutopsyHook')),
    )
    assert causes(runner) == {3: 'input_nonfinite'}
    assert len(read_rows(runner, 'autopsy')) == 1
    assert len(looks) == 6


def test_a_replay_of_what_was_mended_is_exact(tmp_path):
    runner = train(
        tmp_path,
        hook=dict(action='sanitize'),
        faults=[dict(iter=3, site='activation', where='backbone.0')],
        default_hooks=dict(autopsy=dict(type='mmnanguard.AutopsyHook')),
    )
    assert causes(runner) == {3: 'loss_nonfinite'}
    (row,) = read_rows(runner, 'autopsy')
    # The fault was not in the batch; with a NaN there it would be again.
    assert not row['repeats']
    (row,) = read_rows(runner, 'input')
    assert (row['num_samples'], row['iter']) == (1, 6)


@MODELS.register_module()
class Slow(BaseModel):
    """A model of two networks; the second is trained every other iteration."""

    def __init__(self):
        super().__init__(dict(type='Stack'))
        self.fast = nn.Linear(3, 1)
        self.slow = nn.Linear(3, 1)
        self.num_iters = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs

    def train_step(self, data, optim_wrapper):
        self.num_iters += 1
        inputs = self.data_preprocessor(data, True)['inputs'].mean((2, 3))
        losses = {}
        for name in ('fast', 'slow')[: 1 + self.num_iters % 2]:
            network = getattr(self, name)
            with optim_wrapper[name].optim_context(network):
                loss = network(inputs).square().mean()
            optim_wrapper[name].update_params(loss)
            losses[f'loss_{name}'] = loss.detach()
        return losses


@pytest.mark.parametrize(
    ('bad', 'expected'),
    [
        (8, [(3, 'fast'), (3, 'slow')]),
        # In the fourth iteration the slow one is not trained, in the fifth
        # it is, on other samples.
        (13, [(4, 'fast')]),
    ],
)
def test_several_optimizers(tmp_path, bad, expected):
    model = Slow()
    optim = OptimWrapperDict(
        **{
            name: NanGuardOptimWrapper(
                SGD(getattr(model, name).parameters(), lr=0.1)
            )
            for name in ('fast', 'slow')
        }
    )
    runner = train(tmp_path, bad=[bad], hook={}, model=model, optim=optim)
    rows = read_rows(runner)
    assert [(row['iter'], row['optimizer']) for row in rows] == expected
    inputs = read_rows(runner, 'input')
    assert [row['id'] for row in inputs] == [row['id'] for row in rows]
    for row in inputs:
        assert row['samples'] == [f'train/{bad:06d}.jpg']


@pytest.mark.filterwarnings('ignore:The .grad attribute of a')
@pytest.mark.parametrize('action', ['reject', 'sanitize'])
def test_compiled(tmp_path, action):
    torch._dynamo.reset()
    hook = dict(action=action)
    compiled = dict(cfg=dict(compile=dict(backend='aot_eager')))
    runner = train(tmp_path / 'faulty', hook=hook, **compiled)
    (row,) = read_rows(runner, 'input')
    assert row['samples'] == [BAD]
    changes = dict(leave_out=(3,)) if action == 'reject' else dict(value=0.0)
    torch._dynamo.reset()
    assert_same(runner, train(tmp_path / 'b', **compiled, **changes))
