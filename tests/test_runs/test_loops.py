"""The guard works in loops with several wrappers or models."""

import math
from contextlib import nullcontext

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.optim import SGD, AdamW
from toys import (
    ToyNet,
    assert_same,
    guard_hooks,
    make_runner,
    read_rows,
    runner_config,
    wrapper,
)

from mmnanguard.core import TrainingHalted
from mmnanguard.optim import NanGuardOptimWrapper


@MODELS.register_module()
class ToyGan(BaseModel):
    """A model with two wrappers, whose contexts get submodules, as in GANs.

    ``bad`` maps an iteration to the network whose loss is NaN there,
    ``left_out`` to the network that is not trained there.
    """

    def __init__(self, bad=(), left_out=(), has_contexts=True):
        super().__init__()
        self.bad, self.left_out = dict(bad), dict(left_out)
        self.has_contexts = has_contexts
        self.generator = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.discriminator = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        )
        self.num_iters = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.generator(inputs)

    def train_step(self, data, optim_wrapper):
        self.num_iters += 1
        images = torch.stack(data['inputs']).mean((2, 3))
        real = torch.cat([images, images[:, :1]], dim=1)
        losses = {}
        for name in ('discriminator', 'generator'):
            if self.left_out.get(self.num_iters) == name:
                continue
            module = getattr(self, name)
            context = nullcontext()
            if self.has_contexts:
                context = optim_wrapper[name].optim_context(module)
            with context:
                if name == 'discriminator':
                    loss = self.discriminator(real).square().mean()
                else:
                    loss = (self.generator(images) - real).square().mean()
            if self.bad.get(self.num_iters) == name:
                loss = loss * math.nan
            loss = self.played(name, loss)
            optim_wrapper[name].update_params(loss)
            losses[f'loss_{name}'] = loss.detach()
        return losses

    def played(self, name, loss):
        return loss


def run_gan(work_dir, guard=None, max_iters=6, **model):
    runner = make_runner(
        work_dir,
        None,
        model=dict(dict(type='ToyGan'), **model),
        train_dataloader=None,
        train_cfg=None,
    )
    wrappers = OptimWrapperDict(
        **{
            name: NanGuardOptimWrapper(
                AdamW(getattr(runner.model, name).parameters(), lr=0.01),
                guard=guard,
            )
            for name in ('generator', 'discriminator')
        }
    )
    runner = make_runner(
        work_dir,
        wrappers,
        model=runner.model,
        default_hooks=guard_hooks(),
        max_iters=max_iters,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('has_contexts', [True, False])
def test_a_rejection_does_not_undo_what_the_other_committed(
    tmp_path, has_contexts
):
    bad = {3: 'discriminator', 5: 'generator', 6: 'generator'}
    keys = dict(has_contexts=has_contexts)
    faulty = run_gan(tmp_path / 'faulty', bad=bad, **keys)
    oracle = run_gan(tmp_path / 'oracle', left_out=bad, **keys)
    for name, tensor in faulty.model.state_dict().items():
        assert torch.equal(tensor, oracle.model.state_dict()[name]), name
    rows = read_rows(faulty)
    assert {row['iter']: row['optimizer'] for row in rows} == bad
    assert [row['consecutive_skips'] for row in rows] == [1, 1, 2]
    assert rows[0]['id'].endswith('-3-discriminator')
    scalar = faulty.message_hub.get_scalar
    assert scalar('train/guard/generator/skipped').current() == 2
    assert scalar('train/guard/discriminator/skipped').current() == 1


@MODELS.register_module()
class Outplayed(ToyGan):
    """A generator that first wins, and then loses to its adversary."""

    def __init__(self, has_exploded=False):
        super().__init__()
        self.has_exploded = has_exploded

    def played(self, name, loss):
        if name != 'generator' or 6 < self.num_iters <= 20:
            return loss
        if self.has_exploded and self.num_iters > 20:
            return loss * 1e4
        return loss + 10.0


def test_a_loss_that_an_adversary_raised_is_no_divergence(tmp_path):
    keys = dict(guard=dict(divergence=dict(window=4)), max_iters=30)
    healthy = run_gan(tmp_path / 'healthy', type='Outplayed', **keys)
    assert read_rows(healthy) == []
    with pytest.raises(TrainingHalted, match='diverge'):
        run_gan(
            tmp_path / 'exploded', type='Outplayed', has_exploded=True, **keys
        )


@MODELS.register_module()
class Adversarial(ToyGan):
    """A model in which each network's forward goes through the other network.

    A bad latent vector of one phase reaches the statistics of both networks.
    """

    def __init__(self, is_struck=True, **keys):
        super().__init__(**keys)
        self.is_struck = is_struck
        self.average = nn.BatchNorm1d(1, affine=False)  # nobody's own

    def train_step(self, data, optim_wrapper):
        self.num_iters += 1
        images = torch.stack(data['inputs']).mean((2, 3))
        losses = {}
        for name in ('discriminator', 'generator'):
            latent = images.clone()
            if self.bad.get(self.num_iters) == name:
                if not self.is_struck:
                    continue
                latent[0] = math.nan
            optim_wrapper[name].zero_grad()  # of the other's backward
            context = nullcontext()
            if self.has_contexts:
                module = getattr(self, name)
                context = optim_wrapper[name].optim_context(module)
            with context:
                fake = self.generator(latent)
                if name == 'discriminator':
                    fake = fake.detach()
                score = self.average(self.discriminator(fake))
                loss = score.mean() + fake.square().mean()
                if name == 'discriminator':
                    loss = loss.square()
            optim_wrapper[name].update_params(loss)
            losses[f'loss_{name}'] = loss.detach()
        return losses


@pytest.mark.parametrize('has_contexts', [True, False])
def test_a_gan_whose_networks_see_each_other(tmp_path, has_contexts):
    bad = {3: 'discriminator', 5: 'generator', 6: 'generator'}
    keys = dict(bad=bad, has_contexts=has_contexts, type='Adversarial')
    faulty = run_gan(tmp_path / 'faulty', **keys)
    oracle = run_gan(tmp_path / 'oracle', is_struck=False, **keys)
    for name, tensor in faulty.model.state_dict().items():
        if has_contexts or name.startswith(('generator', 'disc')):
            assert torch.isfinite(tensor).all(), name
        if has_contexts:
            assert torch.equal(tensor, oracle.model.state_dict()[name]), name
    assert [row['iter'] for row in read_rows(faulty)] == [3, 5, 6]


def test_backward_step_and_zero_grad_by_hand():
    """Some models call these methods, inside or outside of a context."""

    def train(spoilt, left_out):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        wrapper = NanGuardOptimWrapper(
            SGD(model.parameters(), lr=0.1, momentum=0.9)
        )
        for iteration in range(6):
            batch = torch.randn(4, 2)
            if iteration in left_out:
                continue
            with wrapper.optim_context(model):
                loss = model(batch).square().mean()
                if iteration in spoilt:
                    loss = loss * math.inf
                wrapper.backward(loss)
            wrapper.step()
            wrapper.zero_grad()
        return model.state_dict(), wrapper.optimizer.state_dict()['state']

    (weights, momenta), (expected, others) = (
        train(spoilt=(2, 4), left_out=()),
        train(spoilt=(), left_out=(2, 4)),
    )
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    for index, state in momenta.items():
        buffer = others[index]['momentum_buffer']
        assert torch.equal(state['momentum_buffer'], buffer)


@MODELS.register_module()
class ByHand(ToyNet):
    """A model that calls everything by itself, without ``optim_context``."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        losses = self._run_forward(data, mode='loss')
        loss, logged = self.parse_losses(losses)
        optim_wrapper.backward(loss)
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return logged


def test_a_loop_by_hand_without_a_context(tmp_path):
    """``NanGuardHook`` binds the runner's model."""
    faults = [dict(iter=2, site='loss'), dict(iter=7, site='activation')]
    faulty, oracle = (
        make_runner(
            tmp_path / name,
            wrapper(),
            model=dict(type='ByHand'),
            default_hooks=guard_hooks(*hooks),
            leave_out=left_out,
        )
        for name, hooks, left_out in (
            ('faulty', faults, ()),
            ('oracle', (), (2, 7)),
        )
    )
    faulty.train()
    oracle.train()
    assert_same(faulty, oracle)
    rows = read_rows(faulty)
    assert [row['iter'] for row in rows] == [2, 7]
    assert rows[1]['params'][0]['name'] == 'head.bias'


def test_one_graph_for_both_optimizers():
    """A restore by the first wrapper does not break the second's backward."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    head = nn.Linear(2, 1)
    first = NanGuardOptimWrapper(SGD(net.parameters(), lr=0.1))
    second = NanGuardOptimWrapper(SGD(head.parameters(), lr=0.1))
    with first.optim_context(net), second.optim_context(head):
        loss = head(net(torch.randn(4, 2))).square().mean()
    first.backward(loss * math.nan, retain_graph=True)
    first.step()
    assert net[1].num_batches_tracked == 0
    second.zero_grad()
    second.backward(loss)
    second.step()
    assert second.guard.state.num_steps == 1


# Accumulation: windows that are cut short


def accumulate(work_dir, type_, faults=(), leave_out=(), **changes):
    hooks = guard_hooks(*(dict(iter=n, site='loss') for n in faults))
    hooks['checkpoint'] = dict(
        type='CheckpointHook', interval=1, by_epoch=False
    )
    runner = make_runner(
        work_dir,
        wrapper(type_, accumulative_counts=3),
        default_hooks=hooks,
        leave_out=leave_out,
        **changes,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(('fault', 'window'), [(2, (1, 2, 3)), (10, (10,))])
def test_a_last_window_that_is_short(tmp_path, fault, window):
    plain = accumulate(tmp_path / 'plain', 'OptimWrapper')
    clean = accumulate(tmp_path / 'clean', 'NanGuardOptimWrapper')
    assert_same(plain, clean)
    # Ten iterations: the last window has one.
    faulty = accumulate(
        tmp_path / 'faulty', 'NanGuardOptimWrapper', faults=(fault,)
    )
    oracle = accumulate(
        tmp_path / 'oracle', 'NanGuardOptimWrapper', leave_out=window
    )
    assert_same(faulty, oracle)
    assert [row['iter'] for row in read_rows(faulty)] == [window[-1]]


def test_resume_in_the_middle_of_a_window_is_as_in_mmengine(tmp_path):
    """The window's first gradients are lost, and the log says so."""
    data = accumulate(tmp_path / 'd', 'OptimWrapper').train_dataloader.dataset
    ends = []
    for type_ in ('OptimWrapper', 'NanGuardOptimWrapper'):
        for keys in (dict(max_iters=5), dict(resume=True)):
            runner = make_runner(
                tmp_path / type_,
                wrapper(type_, accumulative_counts=3),
                default_hooks=dict(
                    # Lets PyTorch load what MMEngine has saved.
                    nan_guard=dict(type='mmnanguard.NanGuardHook'),
                    checkpoint=dict(
                        type='CheckpointHook', interval=1, by_epoch=False
                    ),
                ),
                **keys,
            )
            runner._train_dataloader['dataset'] = data
            runner.train()
        ends.append(runner)
    assert_same(*ends)


# Other runners


@pytest.mark.parametrize('type_', ['OptimWrapper', 'AmpOptimWrapper'])
def test_flexible_runner(tmp_path, type_):
    """FlexibleRunner works, with the strategy for one device."""

    def train(name, faults=(), leave_out=()):
        keys = dict(loss_scale=64.0, dtype='float16')
        optim = wrapper(
            f'NanGuard{type_}', **(keys if type_ != 'OptimWrapper' else {})
        )
        config = runner_config(
            tmp_path / name, optim, leave_out=leave_out, max_iters=8
        )
        config['default_hooks'].update(
            guard_hooks(*(dict(iter=n, site='loss') for n in faults))
        )
        torch.manual_seed(0)
        seed = config.pop('randomness')
        runner = FlexibleRunner(
            **config,
            strategy=dict(type='SingleDeviceStrategy'),
            randomness=seed,
        )
        runner.train()
        return runner

    faulty = train('faulty', faults=(3, 6))
    assert_same(faulty, train('oracle', leave_out=(3, 6)))
    assert [row['iter'] for row in read_rows(faulty)] == [3, 6]
