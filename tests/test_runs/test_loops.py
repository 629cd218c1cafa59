"""Loops other than one wrapper and one model."""

import math

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn
from torch.optim import SGD, AdamW
from toys import guard_hooks, make_runner, read_rows

from mmnanguard.optim import NanGuardOptimWrapper


@MODELS.register_module()
class ToyGan(BaseModel):
    """Two wrappers; contexts are given submodules, as GAN models do.

    ``bad`` maps an iteration to the network whose loss is NaN there,
    ``left_out`` to the network that is not trained there.
    """

    def __init__(self, bad=(), left_out=()):
        super().__init__()
        self.bad, self.left_out = dict(bad), dict(left_out)
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
            with optim_wrapper[name].optim_context(module):
                if name == 'discriminator':
                    loss = self.discriminator(real).square().mean()
                else:
                    loss = (self.generator(images) - real).square().mean()
            if self.bad.get(self.num_iters) == name:
                loss = loss * math.nan
            optim_wrapper[name].update_params(loss)
            losses[f'loss_{name}'] = loss.detach()
        return losses


def run_gan(work_dir, **model):
    runner = make_runner(
        work_dir,
        None,
        model=dict(type='ToyGan', **model),
        train_dataloader=None,
        train_cfg=None,
    )
    wrappers = OptimWrapperDict(
        **{
            name: NanGuardOptimWrapper(
                AdamW(getattr(runner.model, name).parameters(), lr=0.01)
            )
            for name in ('generator', 'discriminator')
        }
    )
    runner = make_runner(
        work_dir, wrappers, model=runner.model, default_hooks=guard_hooks()
    )
    runner.train()
    return runner


def test_a_rejection_does_not_undo_what_the_other_committed(tmp_path):
    bad = {3: 'discriminator', 5: 'generator', 6: 'generator'}
    faulty = run_gan(tmp_path / 'faulty', bad=bad)
    oracle = run_gan(tmp_path / 'oracle', left_out=bad)
    for name, tensor in faulty.model.state_dict().items():
        assert torch.equal(tensor, oracle.model.state_dict()[name]), name
    rows = read_rows(faulty)
    assert {row['iter']: row['optimizer'] for row in rows} == bad
    assert [row['consecutive_skips'] for row in rows] == [1, 1, 2]
    assert rows[0]['id'].endswith('-3-discriminator')
    scalar = faulty.message_hub.get_scalar
    assert scalar('train/guard/generator/skipped').current() == 2
    assert scalar('train/guard/discriminator/skipped').current() == 1


def test_backward_step_and_zero_grad_by_hand():
    """Some models call them themselves, inside or outside a context."""

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
