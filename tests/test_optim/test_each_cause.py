"""Each cause can happen: an update of a real wrapper ends with it."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from mmnanguard.core import Cause, Observation, TrainingHalted
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.step_advice import advise_on_step
from mmnanguard.numerics.update.agree import merge
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper


class Job:
    """A small model under a guard that halts at the first anomaly."""

    def __init__(
        self, wrapper=NanGuardOptimWrapper, guard=None, optimizer=SGD, **keys
    ):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2))
        self.wrapper = wrapper(
            optimizer(self.model.parameters(), lr=0.01),
            guard={'max_consecutive_skips': 1, **(guard or {})},
            **keys,
        )
        self.batch = torch.randn(4, 1, 5)

    def train(self, spoil=None, batch=None):
        """Run one update; ``spoil`` changes the loss."""
        with self.wrapper.optim_context(self.model):
            outputs = self.model(self.batch if batch is None else batch)
            loss = outputs.float().square().mean()
        self.wrapper.update_params(loss if spoil is None else spoil(loss))

    def grow_gradients(self, factor):
        for param in self.model.parameters():
            param.register_hook(lambda grad: grad * factor)


class Dividing(SGD):
    """Makes NaN of finite gradients in its second step."""

    num_steps = 0

    def step(self, closure=None):
        super().step()
        self.num_steps += 1
        if self.num_steps == 2:
            with torch.no_grad():
                self.param_groups[0]['params'][0].div_(0.0).sub_(math.inf)


def make_spoiled_weight():
    job = Job(optimizer=Dividing, guard=dict(check_step='never'))
    for _ in range(3):
        job.train()


def make_bad_step():
    job = Job(optimizer=Dividing)
    for _ in range(2):
        job.train()


def make_bad_weight():
    job = Job()
    job.train()
    job.model[0].weight.data.fill_(math.nan)
    job.train()


def make_bad_input():
    job = Job()
    job.wrapper.guard.add_fact('input', torch.tensor(True))
    job.train(lambda loss: loss * math.nan)


def make_bad_loss():
    Job().train(lambda loss: loss * math.nan)


def make_bad_buffer():
    """An activation of 1e38 is finite; its variance is not."""
    job = Job()
    job.train()
    batch = job.batch.clone()
    batch[0, 0, 0] = 1e38
    job.train(lambda loss: loss * 1e-30, batch)


def make_overflow():
    job = Job(
        NanGuardAmpOptimWrapper,
        dtype='float16',
        loss_scale=dict(init_scale=2.0**16),
    )
    job.grow_gradients(math.inf)
    job.train()
    assert job.wrapper.guard.state.routine_overflows == 1
    assert job.wrapper.guard.state.total_skips == 0
    return Cause.SCALE_OVERFLOW


def make_bad_gradient():
    job = Job()
    job.grow_gradients(math.nan)
    job.train()


def make_huge_norm():
    job = Job()
    job.grow_gradients(1e30)
    job.train()


def make_divergence():
    job = Job(guard=dict(divergence=dict(window=2, share=0.5)))
    for factor in (9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0):
        job.train(lambda loss: loss * factor)  # noqa: B023


def make_spike():
    job = Job(guard=dict(spike=dict(window=4, warmup=4)))
    for _ in range(4):
        job.train()
    job.train(lambda loss: loss * 1e6)


MAKERS = {
    Cause.STEP_SPOILED: make_spoiled_weight,
    Cause.WEIGHT_NONFINITE: make_bad_weight,
    Cause.INPUT_NONFINITE: make_bad_input,
    Cause.LOSS_NONFINITE: make_bad_loss,
    Cause.BUFFER_NONFINITE: make_bad_buffer,
    Cause.SCALE_OVERFLOW: make_overflow,
    Cause.GRAD_NONFINITE: make_bad_gradient,
    Cause.NORM_OVERFLOW: make_huge_norm,
    Cause.STEP_NONFINITE: make_bad_step,
    Cause.DIVERGENCE: make_divergence,
    Cause.SPIKE: make_spike,
}


def test_there_is_an_update_for_each_cause():
    assert list(MAKERS) == list(CAUSES)


@pytest.mark.parametrize('cause', MAKERS, ids=lambda cause: cause.value)
def test_an_update_has_the_cause(cause):
    if cause is Cause.SCALE_OVERFLOW:
        if not HAS_CPU_SCALER:
            pytest.skip('needs a loss scale on the CPU')
        assert MAKERS[cause]() is cause
        return
    with pytest.raises(TrainingHalted) as caught:
        MAKERS[cause]()
    event = caught.value.event
    assert event.cause is cause
    assert event.sentence() in str(caught.value)
    general = CAUSES[cause].advice_for(has_scale=False)
    # A step at fault brings its own evidence.
    assert advise_on_step([event], general).long in str(caught.value)


FLAGS = [
    name
    for name, value in vars(Observation(loss=1.0)).items()
    if isinstance(value, bool)
]


@pytest.mark.parametrize('flag', FLAGS)
def test_ranks_agree_on_each_flag(flag):
    """A cause that one rank sees is the cause on all."""
    ranks = [Observation(loss=1.0), Observation(loss=1.0, **{flag: False})]
    for local in ranks:
        merged = merge(ranks, local)
        assert not getattr(merged, flag)
        assert merged.bad_ranks == (1,)
