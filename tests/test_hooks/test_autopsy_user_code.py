"""The autopsy neither repeats nor breaks users' own training steps."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn
from toys import (
    assert_same,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
)
from toys import wrapper as make_wrapper

BAD = 13  # the second sample of the fourth iteration


@MODELS.register_module()
class OwnSteps(BaseModel):
    """A model with a training method ``way``; a large image makes it ill."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.fc = nn.Linear(3, 1)
        self.other = nn.Linear(3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise NotImplementedError

    def train_step(self, data, optim_wrapper):
        loss = getattr(self, self.way)(data, optim_wrapper)
        return dict(loss=loss.detach())

    def look(self, data, net):
        images = torch.stack(list(data['inputs']))
        is_ill = (images.flatten(1).amax(1) > 100)[:, None]
        features = images.clamp(max=9.0).mean((2, 3))
        return (net(features) / ~is_ill).square().mean()

    def update(self, data, wrapper, net=None):
        with wrapper.optim_context(self):
            loss = self.look(data, net or self.fc)
        wrapper.update_params(loss)
        return loss

    def unscales(self, data, wrapper):
        with wrapper.optim_context(self):
            loss = self.look(data, self.fc)
        wrapper.backward(loss)
        wrapper.loss_scaler.unscale_(wrapper.optimizer)
        nn.utils.clip_grad_norm_(self.fc.parameters(), 1.0)
        wrapper.step()
        wrapper.zero_grad()
        return loss

    def unscales_windows(self, data, wrapper):
        with wrapper.optim_context(self):
            loss = self.look(data, self.fc)
        wrapper.backward(wrapper.scale_loss(loss))
        if wrapper.should_update():
            wrapper.loss_scaler.unscale_(wrapper.optimizer)
            nn.utils.clip_grad_norm_(self.fc.parameters(), 1.0)
            wrapper.step()
            wrapper.zero_grad()
        return loss

    def changes_lr(self, data, wrapper):
        wrapper.optimizer.param_groups[0]['lr'] *= 0.9
        wrapper.param_groups[0]['momentum'] *= 0.9
        return self.update(data, wrapper)

    def steps_past(self, data, wrapper):
        loss = self.update(data, wrapper)
        wrapper.optimizer.zero_grad()
        return loss

    def asks(self, data, wrapper):
        assert isinstance(wrapper, OptimWrapper)
        return self.update(data, wrapper)

    def counts(self, data, wrapper):
        hub = MessageHub.get_current_instance()
        hub.update_scalar('train/mine', 1.0)
        return self.update(data, wrapper)

    def goes_by_iter(self, data, wrapper):
        """Make only iteration 3 ill, which is not the last of its window."""
        with wrapper.optim_context(self):
            loss = self.look(data, self.fc)
            if MessageHub.get_current_instance().get_info('iter') == 2:
                loss = loss / 0
        wrapper.update_params(loss)
        return loss

    def alone_in_dict(self, data, wrappers):
        assert isinstance(wrappers, OptimWrapperDict)
        return self.update(data, wrappers['fc'])

    def other_commits(self, data, wrappers):
        """Commit the other wrapper's update after fc's, which may be ill."""
        loss = self.update(data, wrappers['fc'])
        data = dict(data, inputs=[x.clamp(max=9.0) for x in data['inputs']])
        self.update(data, wrappers['other'], self.other)
        return loss


def train(work_dir, way, keys=('default',), max_autopsies=9, **changes):
    torch.manual_seed(0)
    data = make_data(24)
    if way != 'goes_by_iter':
        data[BAD]['inputs'] += 1e3
    model = OwnSteps(way)
    optim_wrapper = make_wrapper(
        changes.pop('type', 'NanGuardOptimWrapper'), lr=0.01, **changes
    )
    if keys != ('default',):
        optim_wrapper = OptimWrapperDict(
            **{key: build(getattr(model, key)) for key in keys}
        )
    autopsy = dict(type='mmnanguard.AutopsyHook', max_autopsies=max_autopsies)
    runner = make_runner(
        work_dir,
        optim_wrapper,
        model=model,
        train_dataloader=loader(data),
        default_hooks=dict(**guard_hooks(), autopsy=autopsy),
        max_iters=6,
    )
    runner.train()
    return runner


def build(net):
    from mmnanguard.optim import NanGuardOptimWrapper

    return NanGuardOptimWrapper(
        optimizer=torch.optim.SGD(net.parameters(), lr=0.01)
    )


@pytest.mark.parametrize(
    ('way', 'keys'),
    [
        (
            'unscales',
            dict(
                type='NanGuardAmpOptimWrapper', dtype='float16', loss_scale=8.0
            ),
        ),
        (
            'unscales_windows',
            dict(
                type='NanGuardAmpOptimWrapper',
                dtype='float16',
                loss_scale=8.0,
                accumulative_counts=2,
            ),
        ),
        ('changes_lr', {}),
        ('steps_past', {}),
        ('asks', {}),
        ('counts', {}),
    ],
)
def test_training_ends_as_without(tmp_path, way, keys):
    runner = train(tmp_path / 'a', way, **keys)
    (row,) = read_rows(runner, 'autopsy')
    assert (row['phase'], row['op']) == ('forward', 'aten.div')
    assert row['samples'] == [f'train/{BAD:06d}.jpg']
    plain = train(tmp_path / 'b', way, max_autopsies=0, **keys)
    assert_same(runner, plain)
    for key in ('lr', 'momentum'):
        values = [
            trained.optim_wrapper.param_groups[0][key]
            for trained in (runner, plain)
        ]
        assert values[0] == values[1]
    if way == 'counts':
        history, _ = runner.message_hub.get_scalar('train/mine').data
        assert len(history) == 6


def test_a_micro_batch_is_replayed_at_its_own_iteration(tmp_path):
    runner = train(tmp_path, 'goes_by_iter', accumulative_counts=2)
    (row,) = read_rows(runner, 'autopsy')
    assert row['repeats']
    assert runner.message_hub.get_info('iter') == 5


def test_a_lone_wrapper_in_a_dict(tmp_path):
    runner = train(tmp_path, 'alone_in_dict', keys=('fc',))
    (row,) = read_rows(runner, 'autopsy')
    assert row['samples'] == [f'train/{BAD:06d}.jpg']


def test_after_another_commit_it_is_inexact(tmp_path):
    runner = train(tmp_path, 'other_commits', keys=('fc', 'other'))
    (row,) = read_rows(runner, 'autopsy')
    assert not row['exact']
