"""An abandoned forward or backward leaves nothing behind for the next one."""

import contextlib
import math

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from toys import ToyNet, guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.optim import NanGuardOptimWrapper

NAN = math.nan


def fail(_):
    raise RuntimeError('out of memory')


class Abandoning(ToyNet):
    """Abandons iterations in a way of its own, with a factor on the loss.

    Args:
        plan: For each iteration, from 1, what happens in it.
    """

    def __init__(self, plan, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.plan = plan
        self.iteration = 0

    def train_step(self, data, optim_wrapper):
        self.iteration += 1
        kind, factor = self.plan.get(self.iteration, ('update', 1.0))
        data = self.data_preprocessor(data, True)
        with optim_wrapper.optim_context(self):
            losses = self(**data, mode='loss')
            loss, logs = self.parse_losses(losses)
            loss = loss * factor
        getattr(self, f'do_{kind}')(loss, optim_wrapper)
        return logs

    def do_update(self, loss, optim_wrapper):
        optim_wrapper.update_params(loss)

    def do_nothing(self, loss, optim_wrapper):
        pass

    def do_fail(self, loss, optim_wrapper):
        loss.register_hook(fail)
        try:
            optim_wrapper.update_params(loss)
        except RuntimeError:
            optim_wrapper.zero_grad()

    def do_fail_and_keep(self, loss, optim_wrapper):
        loss.register_hook(fail)
        with contextlib.suppress(RuntimeError):
            optim_wrapper.update_params(loss)

    def do_zero(self, loss, optim_wrapper):
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        optim_wrapper._inner_count -= 1
        optim_wrapper.zero_grad()

    def do_zero_in_place(self, loss, optim_wrapper):
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        optim_wrapper._inner_count -= 1
        optim_wrapper.zero_grad(set_to_none=False)

    def do_zero_past(self, loss, optim_wrapper):
        optim_wrapper.backward(optim_wrapper.scale_loss(loss))
        optim_wrapper._inner_count -= 1
        optim_wrapper.optimizer.zero_grad()


MODELS.register_module(module=Abandoning)
WAYS = [
    'nothing',
    'fail',
    'fail_and_keep',
    'zero',
    'zero_in_place',
    'zero_past',
]


def train(tmp_path, plan, **keys):
    runner = make_runner(
        tmp_path,
        wrapper(**keys),
        model=dict(type='Abandoning', plan=plan),
        default_hooks=guard_hooks(),
    )
    runner.train()
    return runner


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('policy', ['window', 'microbatch'])
def test_a_loss_is_not_judged_with_the_next_batch(tmp_path, way, policy):
    runner = train(tmp_path, {4: (way, NAN)}, guard=dict(accumulation=policy))
    assert read_rows(runner) == []
    assert runner.optim_wrapper.guard.state.num_steps == 9


@pytest.mark.parametrize('way', WAYS)
def test_its_samples_are_not_named(tmp_path, way):
    plan = {4: (way, 1.0), 5: ('update', NAN)}
    (row,) = read_rows(train(tmp_path, plan))
    assert row['samples'] == [f'train/{n:06d}.jpg' for n in range(16, 20)]
    assert math.isnan(float(row['loss']))


@pytest.mark.parametrize('policy', ['window', 'microbatch'])
def test_in_the_middle_of_a_window(tmp_path, policy):
    """The window has iterations 1, 3 and 4; iteration 2 is in none."""
    plan = {2: ('nothing', NAN), 4: ('update', NAN)}
    runner = train(
        tmp_path, plan, accumulative_counts=3, guard=dict(accumulation=policy)
    )
    (row,) = read_rows(runner)
    numbers = [*range(4), *range(8, 16)]
    if policy == 'microbatch':
        numbers = range(12, 16)
    assert row['samples'] == [f'train/{n:06d}.jpg' for n in numbers]


@pytest.mark.parametrize('policy', ['window', 'microbatch'])
def test_what_the_abandoned_forward_changed_stays(tmp_path, policy):
    """The rejected update alone is undone, as in a run without a guard."""
    plans = [{4: ('nothing', 1.0), 5: ('update', NAN)}, {4: ('nothing', 1.0)}]
    guarded, oracle = [
        train(tmp_path / str(i), plan, guard=dict(accumulation=policy))
        for i, plan in enumerate(plans)
    ]
    count = 'backbone.1.num_batches_tracked'
    assert guarded.model.state_dict()[count] == 9
    assert oracle.model.state_dict()[count] == 10


def test_flags_of_an_abandoned_forward_are_dropped(hub_iter):
    model = torch.nn.Linear(3, 1)
    guarded = NanGuardOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    for iteration in range(3):
        hub_iter(iteration)
        if iteration == 1:
            guarded.add_fact('input', torch.ones(()))
        with guarded.optim_context(model):
            loss = model(torch.ones(3)).sum()
        if iteration != 1:
            guarded.update_params(loss)
    assert guarded.guard.state.total_skips == 0
    assert guarded.guard.state.num_steps == 2


def test_flags_beside_an_earlier_micro_batch_are_dropped(hub_iter):
    model = torch.nn.Linear(3, 1)
    guarded = NanGuardOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2
    )
    for iteration in range(3):
        hub_iter(iteration)
        # Iteration 1 is abandoned, in the window of iterations 0 and 2.
        guarded.add_fact('input', torch.tensor(float(iteration == 1)))
        with guarded.optim_context(model):
            loss = model(torch.ones(3)).sum()
        if iteration != 1:
            guarded.update_params(loss)
    assert guarded.guard.state.total_skips == 0
    assert guarded.guard.state.num_steps == 1


@pytest.fixture
def hub_iter(monkeypatch):
    """Set the iteration that MMEngine's hub names, without a Runner."""
    hub = MessageHub.get_instance('abandoned')
    monkeypatch.setattr(MessageHub, 'get_current_instance', lambda: hub)
    return lambda iteration: hub.update_info('iter', iteration)


def test_real_micro_batches_keep_their_losses(hub_iter):
    """A zero_grad() of the user's that keeps gradients drops no loss."""

    class Keeps(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            pass

    model = torch.nn.Linear(3, 1)
    guarded = NanGuardOptimWrapper(
        Keeps(model.parameters(), lr=0.1), accumulative_counts=3
    )
    for iteration in range(3):
        hub_iter(iteration)
        with guarded.optim_context(model):
            loss = model(torch.ones(3)).sum()
        # A loss of inf with finite gradients.
        guarded.update_params(loss + (math.inf if iteration == 0 else 0))
        guarded.zero_grad()
    assert guarded.guard.state.total_skips == 1
