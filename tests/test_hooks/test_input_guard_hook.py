"""Bad inputs are rejected by name, mended, or stop the run."""

import math

import pytest
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from toys import (
    ToyNet,
    assert_finite,
    assert_same,
    guard_hooks,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.core import GuardConfigError, TrainingHalted

BAD = 'train/000009.jpg'  # the second sample of the third iteration


@MODELS.register_module()
class Stack(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=torch.stack(list(data['inputs'])))


def train(work_dir, stack=True, value=math.nan, leave_out=(), **hook):
    data = make_data(24)
    data[9]['inputs'][0, 0, 0] = value
    hooks = guard_hooks()
    if hook:
        hooks['input_guard'] = dict(type='mmnanguard.InputGuardHook', **hook)
    model = dict(type='ToyNet')
    if stack:
        model['data_preprocessor'] = dict(type='Stack')
    runner = make_runner(
        work_dir,
        wrapper(),
        model=model,
        train_dataloader=dict(
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            num_workers=0,
        ),
        default_hooks=hooks,
        max_iters=6,
        leave_out=leave_out,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('stack', [True, False], ids=['batch', 'list'])
def test_reject_names_the_sample(tmp_path, stack):
    runner = train(tmp_path / 'faulty', stack, action='reject')
    (row,) = read_rows(runner)
    assert (row['iter'], row['cause']) == (3, 'input_nonfinite')
    (found,) = read_rows(runner, 'input')
    assert found['id'] == row['id']
    assert found['samples'] == [BAD]
    assert found['keys'] == {'inputs': [BAD]}
    assert_same(runner, train(tmp_path / 'oracle', stack, leave_out=(3,)))


def test_sanitize_trains_on(tmp_path):
    runner = train(tmp_path / 'a', action='sanitize', nan=0.5)
    assert read_rows(runner) == []
    assert_finite(runner)
    assert_same(runner, train(tmp_path / 'b', value=0.5))


def test_halt(tmp_path):
    with pytest.raises(TrainingHalted, match=BAD):
        train(tmp_path, action='halt')


def test_keys(tmp_path):
    runner = train(tmp_path, action='reject', keys=['data_samples.label'])
    (row,) = read_rows(runner)
    assert row['cause'] == 'loss_nonfinite'


def test_a_clean_run_is_the_plain_one(tmp_path):
    assert_same(
        train(tmp_path / 'with', value=0.0, action='reject'),
        train(tmp_path / 'without', value=0.0),
    )


def test_bad_config(tmp_path):
    with pytest.raises(GuardConfigError, match='reject, sanitize, halt'):
        train(tmp_path, action='skip')


def test_preprocessors_are_left_as_they_were(tmp_path):
    runner = train(tmp_path, action='reject')
    assert 'forward' not in vars(runner.model.data_preprocessor)
    assert isinstance(runner.model, ToyNet)
