"""A step that makes NaN of finite gradients is undone, or told as such."""

import copy
import math

import pytest
import torch
from matrix import differing, everything
from test_wrappers import messages as messages
from torch import nn

from mmnanguard.core import Cause, GuardConfigError, TrainingHalted
from mmnanguard.numerics.update.agree import ranks_that
from mmnanguard.optim import NanGuardOptimWrapper, step_check
from mmnanguard.optim.step_settings import can_spoil, describe

NAN, INF = math.nan, math.inf


class Dividing(torch.optim.Optimizer):
    """SGD with momentum, counters in all places, and divisions by zero.

    Args:
        zeros: The calls of ``step`` that divide by zero, from 1.
        where: 'weight', 'state' or 'both'.
    """

    def __init__(self, params, zeros=(), where='weight', lr=0.1):
        self.zeros, self.where = zeros, where
        self.num_calls = 0
        self.done = 0
        super().__init__(params, dict(lr=lr, sum_of_lr=0.0))

    @torch.no_grad()
    def step(self, closure=None):
        NUM_CALLS.append(1)
        divisor = torch.tensor(float(len(NUM_CALLS) not in self.zeros))
        self.done += 1
        for group in self.param_groups:
            group['sum_of_lr'] += group['lr']
            for param in group['params']:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state['mean'] = torch.zeros_like(param)
                    state['step'] = torch.tensor(0.0)
                state['step'] += 1
                state['mean'].lerp_(param.grad, 0.5)
                param.sub_(state['mean'], alpha=group['lr'])
                if self.where in ('weight', 'both'):
                    param.mul_(divisor / divisor)
                if self.where in ('state', 'both'):
                    state['mean'].mul_(1 / divisor)


# The calls of all steps; not a part of the optimizer, which is put back.
NUM_CALLS = []


@pytest.fixture(autouse=True)
def count_anew():
    NUM_CALLS.clear()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.norm(self.conv(inputs)).relu()).square().mean()


def build(make_optimizer, **keys):
    torch.manual_seed(0)
    model = Net()
    wrapper = NanGuardOptimWrapper(make_optimizer(model.parameters()), **keys)
    wrapper.guard.attach(object())
    return model, wrapper


def train(model, wrapper, num=8, leave_out=(), change=None, factor=1.0):
    generator = torch.Generator().manual_seed(1)
    for window in range(1, num + 1):
        inputs = torch.randn(4, 3, generator=generator)
        if window in leave_out:
            continue
        if change is not None:
            change(window, model, wrapper)
        with wrapper.optim_context(model):
            loss = model(inputs) * factor
        wrapper.update_params(loss)
    return wrapper.guard.take_events()


def everything_and_counters(model, wrapper):
    optimizer = wrapper.optimizer
    tensors = everything(model, wrapper)
    for key, value in vars(optimizer).items():
        if isinstance(value, (int, float)):
            tensors[key] = torch.tensor(value)
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, (int, float)):
                tensors[f'{key} {index}'] = torch.tensor(value)
    return tensors


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=0.01)])
@pytest.mark.parametrize('where', ['weight', 'state', 'both'])
@pytest.mark.parametrize(
    ('zeros', 'check_step'),
    [((1,), 'start'), ((2, 3), 'start'), ((1, 4, 8), 'always')],
)
def test_an_undone_step_leaves_no_trace(zeros, check_step, where, clip_grad):
    keys = dict(guard=dict(check_step=check_step), clip_grad=clip_grad)
    model, wrapper = build(lambda p: Dividing(p, zeros, where), **keys)
    events = train(model, wrapper)
    assert [event.cause for event in events] == [Cause.STEP_NONFINITE] * len(
        zeros
    )
    assert [event.iter for event in events] == list(zeros)
    assert wrapper.guard.state.total_skips == len(zeros)

    expected = build(lambda p: Dividing(p, where=where), **keys)
    assert not train(*expected, leave_out=zeros)
    left = everything_and_counters(model, wrapper)
    assert differing(left, everything_and_counters(*expected)) == []


class Slots(torch.optim.SGD):
    """Begins its state with numbers that stand for nothing yet."""

    def __init__(self, params, value):
        super().__init__(params, lr=0.1, momentum=0.9)
        self.value = value

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for param in group['params']:
                slots = torch.full_like(param, self.value)
                self.state[param].setdefault('slots', slots)


@pytest.mark.parametrize('check_step', ['start', 'always'])
@pytest.mark.parametrize('value', [NAN, -INF])
def test_a_state_that_begins_like_that_by_design(check_step, value, messages):
    keys = dict(guard=dict(check_step=check_step))
    model, wrapper = build(lambda p: Slots(p, value), **keys)
    events = train(model, wrapper)
    assert [event.iter for event in events] == [1, 2]
    assert 'it is made so' in str(messages)

    expected = build(lambda p: Slots(p, value), guard=dict(check_step='never'))
    assert not train(*expected, leave_out=(1, 2))
    left = everything_and_counters(model, wrapper)
    assert differing(left, everything_and_counters(*expected)) == []


def halted(model, wrapper, **keys):
    """Return the exception that ends the run."""
    wrapper.guard.detach()
    with pytest.raises(TrainingHalted) as caught:
        train(model, wrapper, **keys)
    story = str(caught.value)
    assert 'outside any guarded update' not in story
    assert 'hooks, EMA' not in story
    return caught.value, story


@pytest.mark.parametrize('check_step', ['start', 'never'])
def test_a_step_that_was_not_checked_is_told_later(check_step):
    model, wrapper = build(
        lambda p: Dividing(p, (5,)), guard=dict(check_step=check_step)
    )
    error, story = halted(model, wrapper)
    assert error.event.cause is Cause.STEP_SPOILED
    assert error.event.iter == 6
    assert error.event.step['iter'] == 5
    assert "the optimizer's step of iteration 5 made NaN" in story
    assert 'Dividing' in story
    assert 'nothing bad was committed' not in story
    assert "check_step='always'" in story


def spoil_with_data(window, model, wrapper):
    if window == 6:
        model.head.weight.data[0] = NAN


def spoil(window, model, wrapper):
    if window == 6:
        with torch.no_grad():
            model.head.weight.fill_(NAN)


@pytest.mark.parametrize('change', [spoil, spoil_with_data])
@pytest.mark.parametrize(
    'make_optimizer',
    [
        Dividing,
        torch.optim.AdamW,
        lambda p: torch.optim.Adam(p, eps=0.0),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    ],
    ids=['own', 'adamw', 'eps', 'centered'],
)
def test_who_else_spoils_weights_is_not_the_step(make_optimizer, change):
    model, wrapper = build(make_optimizer)
    wrapper.guard.detach()
    with pytest.raises(TrainingHalted, match='outside any guarded') as caught:
        train(model, wrapper, change=change)
    assert caught.value.event.cause is Cause.WEIGHT_NONFINITE


def set_group(**settings):
    def change(window, model, wrapper):
        if window == 5:
            wrapper.optimizer.param_groups[0].update(settings)

    return change


@pytest.mark.parametrize(
    ('make_optimizer', 'settings', 'word'),
    [
        (torch.optim.SGD, dict(lr=NAN), 'lr of group 0 is nan'),
        (torch.optim.SGD, dict(lr=INF), 'lr of group 0 is inf'),
        (torch.optim.SGD, dict(lr=torch.tensor(NAN)), 'lr of group 0 is nan'),
        (torch.optim.SGD, dict(weight_decay=INF), 'weight_decay of group 0'),
        (torch.optim.SGD, dict(momentum=NAN), 'momentum of group 0'),
        (torch.optim.AdamW, dict(betas=(0.9, NAN)), 'betas of group 0'),
        (torch.optim.AdamW, dict(eps=NAN), 'eps of group 0'),
        (torch.optim.RMSprop, dict(alpha=NAN), 'alpha of group 0'),
        (torch.optim.Adadelta, dict(rho=NAN), 'rho of group 0'),
    ],
)
def test_settings_that_are_not_finite_are_refused(
    make_optimizer, settings, word
):
    keys = dict(guard=dict(max_consecutive_skips=3))
    model, wrapper = build(lambda p: make_optimizer(p, lr=0.1), **keys)
    error, story = halted(model, wrapper, change=set_group(**settings))
    assert error.event.cause is Cause.STEP_NONFINITE
    assert error.event.iter == 7
    assert word in story
    assert 'param_scheduler' in story

    expected = build(lambda p: make_optimizer(p, lr=0.1), **keys)
    train(*expected, num=4)
    assert differing(everything(model, wrapper), everything(*expected)) == []


def test_a_setting_comes_back():
    """A schedule that divides by zero once costs one update."""

    def change(window, model, wrapper):
        wrapper.optimizer.param_groups[0]['lr'] = NAN if window == 3 else 0.1

    model, wrapper = build(lambda p: torch.optim.SGD(p, lr=0.1))
    (event,) = train(model, wrapper, change=change)
    assert event.cause is Cause.STEP_NONFINITE
    assert wrapper.guard.state.num_steps == 7


def test_settings_that_may_be_infinite_are_left_alone():
    model, wrapper = build(lambda p: torch.optim.SGD(p, lr=0.1))
    change = set_group(growth_rate=INF, momentum=None, betas=None)
    wrapper.optimizer.param_groups[0]['momentum'] = 0
    assert not train(
        model, wrapper, change=lambda *a: change(*a) if a[0] < 0 else None
    )
    wrapper.optimizer.param_groups[0]['growth_rate'] = INF
    assert not train(model, wrapper)


@pytest.mark.parametrize('factor', [6e18, 1.0])
def test_adagrads_sums_do_not_overflow(factor):
    model = nn.Linear(1, 1, bias=False)
    wrapper = NanGuardOptimWrapper(torch.optim.Adagrad(model.parameters()))
    for _ in range(12):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 1)).sum() * factor
        wrapper.update_params(loss)
    total = wrapper.optimizer.state[model.weight]['sum']
    assert torch.isfinite(total).all()
    num_skips = wrapper.guard.state.total_skips
    assert (num_skips > 0) == (factor > 1)


@pytest.mark.parametrize(
    'make_optimizer',
    [
        lambda p: torch.optim.Adam(p, eps=0.0),
        lambda p: torch.optim.NAdam(p, eps=0.0),
        lambda p: torch.optim.RMSprop(p, eps=0.0),
        lambda p: torch.optim.Adamax(p, eps=0.0),
        lambda p: torch.optim.Adam(p, eps=1e-50),
    ],
)
def test_gradients_of_zero_under_an_eps_of_zero(make_optimizer):
    model, wrapper = build(make_optimizer)
    _, story = halted(model, wrapper, num=30, factor=0.0)
    assert 'eps=' in story
    assert 'set optim_wrapper.optimizer.eps=1e-8' in story
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_argument_that_changes_after_the_start():
    """Steps are watched from then on, although the optimizer is ordinary."""

    def change(window, model, wrapper):
        wrapper.optimizer.param_groups[0]['alpha'] = 0.9 if window < 6 else 1.5

    model, wrapper = build(torch.optim.RMSprop)
    _, story = halted(model, wrapper, num=20, change=change)
    assert 'of finite gradients (RMSprop with' in story
    assert 'outside any guarded update' not in story


@pytest.mark.parametrize('register', ['pre', 'post'])
def test_a_hook_of_the_optimizer_is_a_part_of_the_step(register):
    def divide(optimizer, *_):
        with torch.no_grad():
            for param in optimizer.param_groups[0]['params']:
                param.div_(0.0)

    def change(window, model, wrapper):
        if window == 5:
            method = f'register_step_{register}_hook'
            getattr(wrapper.optimizer, method)(divide)

    model, wrapper = build(torch.optim.AdamW)
    _, story = halted(model, wrapper, num=20, change=change)
    assert 'of finite gradients (AdamW with' in story


@pytest.mark.parametrize(
    ('make_optimizer', 'expected'),
    [
        (torch.optim.AdamW, False),
        (torch.optim.SGD, False),
        (torch.optim.Rprop, False),
        (torch.optim.Adadelta, False),
        (torch.optim.RAdam, False),
        (lambda p: torch.optim.Adam(p, eps=0.0), True),
        (lambda p: torch.optim.Adam(p, eps=1e-50), True),
        (lambda p: torch.optim.RMSprop(p, centered=True), True),
        (lambda p: torch.optim.RMSprop(p, alpha=1.5), True),
        (Dividing, True),
        (type('Own', (torch.optim.AdamW,), {}), True),
    ],
)
def test_the_optimizers_that_can_spoil(make_optimizer, expected):
    assert can_spoil(make_optimizer([nn.Parameter(torch.ones(1))])) is expected


@pytest.mark.parametrize(
    'make_optimizer',
    [
        torch.optim.AdamW,
        torch.optim.Adadelta,
        torch.optim.Rprop,
        torch.optim.RAdam,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, centered=True),
        Dividing,
    ],
)
def test_healthy_steps_are_as_without_a_check(make_optimizer):
    checked = build(make_optimizer, guard=dict(check_step='always'))
    plain = build(make_optimizer, guard=dict(check_step='never'))
    assert not train(*checked)
    assert not train(*plain)
    assert differing(everything(*checked), everything(*plain)) == []


def test_a_run_that_goes_on_checks_each_step():
    """One step is not checked; the next bad ones are undone."""
    model, wrapper = build(lambda p: Dividing(p, (5, 8, 10)))
    clean = {}

    def go_back(window, model, wrapper):
        if window == 5:
            clean.update(copy.deepcopy(model.state_dict()))
        if window == 7:
            model.load_state_dict(clean)

    events = train(model, wrapper, num=11, change=go_back)
    assert [(event.iter, event.cause) for event in events] == [
        (6, Cause.STEP_SPOILED),
        (9, Cause.STEP_NONFINITE),
        (11, Cause.STEP_NONFINITE),
    ]
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Normalized(torch.optim.SGD):
    """An optimizer that divides by the norm of the gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]['params']:
            param.sub_(param.grad / param.grad.norm(), alpha=0.1)


def test_gradients_of_zero_are_the_evidence():
    model, wrapper = build(lambda p: Normalized(p, lr=0.1))
    _, story = halted(model, wrapper, num=30, factor=0.0)
    assert "gradients of 'conv.weight' and 5 more are exactly 0" in story
    assert 'eps=' not in story
    assert 'centered' not in story


def test_a_state_that_was_bad_before_is_the_evidence():
    model, wrapper = build(torch.optim.Adam)
    train(model, wrapper, num=1)
    wrapper.optimizer.state[model.head.bias]['exp_avg'][0] = NAN
    _, story = halted(model, wrapper, num=30)
    assert "not finite before the step ('head.bias exp_avg')" in story
    assert 'resume=False' in story


class Minimum(torch.optim.SGD):
    """An optimizer whose state begins with inf by design."""

    def step(self, closure=None):
        super().step()
        for param in self.param_groups[0]['params']:
            state = self.state[param]
            state.setdefault('lowest', torch.full_like(param, INF))


def test_a_state_that_begins_with_inf_is_no_fault():
    model, wrapper = build(lambda p: Minimum(p, lr=0.1))
    assert not train(model, wrapper)


def test_an_optimizer_that_cannot_be_copied_is_named_once(
    monkeypatch, messages
):
    def refuse(optimizer):
        raise RuntimeError('no copy')

    monkeypatch.setattr(step_check, 'StepTrial', refuse)
    model, wrapper = build(Dividing)
    assert not train(model, wrapper)
    warnings = [text for _, text in messages if 'cannot be copied' in text]
    assert len(warnings) == 1
    assert 'Dividing' in warnings[0]


def test_a_resumed_run_is_checked_again():
    model, wrapper = build(Dividing)
    train(model, wrapper, num=5)
    saved = wrapper.state_dict()
    model, wrapper = build(lambda p: Dividing(p, (7,)))
    wrapper.load_state_dict(saved)
    (event,) = train(model, wrapper)
    assert event.cause is Cause.STEP_NONFINITE


def test_the_value_of_the_option_is_checked():
    with pytest.raises(GuardConfigError, match='check_step'):
        build(Dividing, guard=dict(check_step='sometimes'))


def test_one_rank_alone():
    assert ranks_that(True, False) == ((0,), ())


def test_settings_are_told_as_a_user_writes_them():
    optimizer = torch.optim.RMSprop(
        [nn.Parameter(torch.ones(1))], centered=True
    )
    assert describe(optimizer.param_groups[0])['centered'] is True


def test_a_late_step_on_gradients_of_zero_is_undone():
    """The run goes on, because the step was checked."""
    model, wrapper = build(lambda p: Normalized(p, lr=0.1))
    train(model, wrapper, num=8)
    before = copy.deepcopy(model.state_dict())
    (event,) = train(model, wrapper, num=1, factor=0.0)
    assert event.cause is Cause.STEP_NONFINITE
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ('spoil', 'make_optimizer'),
    [
        # The rounded variance of gradients is below 0.
        (
            lambda s: s['square_avg'].fill_(-1.0),
            lambda p: torch.optim.RMSprop(p, centered=True),
        ),
        # All gradients so far were 0.
        (
            lambda s: s['exp_avg_sq'].fill_(-1.0),
            lambda p: torch.optim.Adam(p, eps=0.0, amsgrad=False),
        ),
    ],
    ids=['centered', 'eps'],
)
def test_a_late_step_with_a_known_risk_is_undone(spoil, make_optimizer):
    model, wrapper = build(make_optimizer)
    train(model, wrapper, num=8)
    spoil(wrapper.optimizer.state[model.head.bias])
    _, story = halted(model, wrapper, num=30)
    assert 'was undone' in story
    assert 'nothing bad was committed' in story
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_known_risk_that_a_schedule_brings_is_seen():
    _, wrapper = build(torch.optim.RMSprop)
    assert not wrapper.guard.params.is_risky
    wrapper.optimizer.param_groups[0]['centered'] = True
    assert wrapper.guard.params.can_spoil
    assert wrapper.guard.params.is_risky
