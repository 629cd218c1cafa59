"""Bad buffers and averages beside sound updates cost no training."""

import math

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from test_rollback_hook import SpoilWeights, assert_equal, train
from toys import read_rows

AUDIT = dict(audit=dict(type='mmnanguard.StateAuditHook', interval=3))


class SpoilBeside(Hook):
    """Writes Inf into what the loss does not use, in some iterations."""

    priority = 'HIGH'

    def __init__(self, iterations, where):
        self.iterations, self.where = iterations, where

    def before_train(self, runner):
        if self.where == 'buffers':
            # The name is not that of an average.
            runner.model.teacher = torch.nn.Module()
            runner.model.teacher.register_buffer('shadow', torch.ones(3))

    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 in self.iterations:
            self.find(runner)[0] = math.inf

    def find(self, runner):
        if self.where == 'buffers':
            return runner.model.teacher.shadow
        (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
        return next(ema.ema_model.parameters()).data


def run(work_dir, where, iterations, custom=()):
    hooks = [SpoilBeside(iterations, where), *custom]
    if where == 'ema':
        hooks.append(dict(type='EMAHook', momentum=0.1))
    return train(work_dir, faults=(), hooks=AUDIT, custom=hooks)


@pytest.mark.parametrize('where', ['buffers', 'ema'])
def test_only_what_is_bad_is_put_back(tmp_path, where):
    runner = run(tmp_path / 'bad', where, (9, 15))
    assert [row['iter'] for row in read_rows(runner, 'audit')] == [9, 15]
    assert read_rows(runner, 'rollback') == []
    assert runner.optim_wrapper.guard.state.num_rollbacks == 0
    sound = run(tmp_path / 'sound', where, ())
    assert_equal(runner.model.state_dict(), sound.model.state_dict())


def test_bad_weights_beside_it_are_no_small_matter(tmp_path):
    runner = run(tmp_path, 'buffers', (9,), [SpoilWeights([9])])
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (9, 8)
    assert runner.model.teacher.shadow.isfinite().all()
