"""Users' own loops and subclasses keep the guarantee, or get a warning."""

import copy
import math

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS
from test_wrappers import FP16, amp, assert_equal, fp32, nan_grads, train
from test_wrappers import messages as messages
from test_wrappers import model as model  # a fixture
from torch import nn
from torch.optim import LBFGS, SGD, AdamW
from toys import guard_hooks, make_runner
from toys import wrapper as wrapper_config

from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

BATCH = torch.ones(8, 3).cumsum(0) / 10


def warnings_of(messages):
    return [
        text for level, text in messages if text.startswith('mmnanguard: ')
    ]


def state_of(model, wrapper):
    state = wrapper.optimizer.state_dict()['state']
    return copy.deepcopy((model.state_dict(), state))


# Subclasses


def make(methods, model, type_=NanGuardOptimWrapper, **keys):
    type_ = type('Own', (type_,), methods)
    return type_(SGD(model.parameters(), lr=0.1, momentum=0.9), **keys)


def test_own_update_params_keeps_the_guarantee(model, messages):
    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.backward(loss)
        self.step()
        self.zero_grad()

    wrapper = make(dict(update_params=update_params), model)
    train(wrapper, model)
    before = state_of(model, wrapper)
    train(wrapper, model, spoil=nan_grads)
    assert_equal(state_of(model, wrapper)[0], before[0])
    assert wrapper.guard.state.total_skips == 1
    assert warnings_of(messages) == []


@pytest.mark.parametrize(
    ('methods', 'words'),
    [
        (
            dict(step=lambda self, **kwargs: self.optimizer.step()),
            'THIS UPDATE WAS NOT GUARDED: SGD.step() was called past',
        ),
        (
            dict(optim_context=lambda self, m: torch.enable_grad()),
            'outside of optim_context',
        ),
        (
            dict(backward=lambda self, loss, **kwargs: loss.backward()),
            'its loss is not checked',
        ),
    ],
    ids=['step', 'optim_context', 'backward'],
)
def test_what_a_subclass_switches_off_is_said_once(
    model, messages, methods, words
):
    if 'step' in methods:
        need_step_hooks()
    wrapper = make(methods, model)
    wrapper._inner_count = 1
    train(wrapper, model)
    train(wrapper, model)
    (text,) = warnings_of(messages)
    assert words in text


def need_step_hooks():
    """Skip the test where Dynamo removed the step hooks.

    PyTorch 2.1 does so when it first compiles.
    """
    calls = []
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    sgd.register_step_post_hook(lambda *args: calls.append(args))
    sgd.step()
    if not calls and not HAS_CPU_SCALER:
        pytest.skip('this PyTorch calls no step hooks once it has compiled')


def test_a_step_past_the_wrapper_is_said(model, messages):
    need_step_hooks()
    wrapper = fp32(model)
    with wrapper.optim_context(model):
        loss = model(BATCH).square().mean()
    loss.backward()
    wrapper.optimizer.step()
    (text,) = warnings_of(messages)
    assert 'THIS UPDATE WAS NOT GUARDED' in text


def test_own_clip_grad_sees_unscaled_gradients(model):
    norms = []

    def _clip_grad(self):
        for group in self.optimizer.param_groups:
            norms.append(nn.utils.clip_grad_norm_(group['params'], 0.5))

    wrapper = make(
        dict(_clip_grad=_clip_grad),
        model,
        NanGuardAmpOptimWrapper,
        clip_grad=dict(max_norm=9e9),
        loss_scale=64.0,
        **FP16,
    )
    train(wrapper, model)
    assert 0 < norms[0] < 10


def test_own_clip_grad_equals_mmengines(model, messages):
    def _clip_grad(self):
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group['params'], 0.01)

    results = []
    for base in (OptimWrapper, NanGuardOptimWrapper):
        twin = copy.deepcopy(model)
        wrapper = make(
            dict(_clip_grad=_clip_grad), twin, base, clip_grad=dict(max_norm=1)
        )
        for _ in range(3):
            train(wrapper, twin)
        results.append(twin.state_dict())
    assert_equal(*results)
    (text,) = warnings_of(messages)
    assert 'overrides _clip_grad' in text
    train(wrapper, twin, spoil=nan_grads)
    assert_equal(*results)


# Loops by hand


def test_own_unscale(model, messages):
    """The loop calls ``unscale_``, clips by hand, then calls ``step``."""
    results = []
    for by_hand in (True, False):
        twin = copy.deepcopy(model)
        wrapper = amp(
            twin,
            # Dynamic: a static scale with such room stays after one NaN.
            loss_scale=dict(init_scale=64.0),
            clip_grad=None if by_hand else dict(max_norm=0.05),
            **FP16,
        )
        for number in range(6):
            with wrapper.optim_context(twin):
                loss = twin(BATCH).square().mean()
            if number == 2:
                loss = nan_grads(loss)
            wrapper.backward(loss)
            if by_hand:
                wrapper.loss_scaler.unscale_(wrapper.optimizer)
                nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
            wrapper.step()
            wrapper.zero_grad()
        results.append(twin.state_dict())
        assert wrapper.loss_scaler.get_scale() == 32.0
        assert wrapper.guard.state.routine_overflows == 1
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name])
        assert torch.isfinite(tensor).all()


def test_unscale_without_a_clip_is_exact(model):
    results = []
    for by_hand in (True, False):
        twin = copy.deepcopy(model)
        wrapper = amp(twin, loss_scale=64.0, **FP16)
        for _ in range(3):
            with wrapper.optim_context(twin):
                loss = twin(BATCH).square().mean()
            wrapper.backward(loss)
            if by_hand:
                wrapper.loss_scaler.unscale_(wrapper.optimizer)
            wrapper.step()
            wrapper.zero_grad()
        results.append(twin.state_dict())
    assert_equal(*results)


@pytest.mark.parametrize('optimizer', [SGD, AdamW])
def test_a_closure_is_refused_before_anything_happens(model, optimizer):
    wrapper = NanGuardOptimWrapper(optimizer(model.parameters(), lr=0.1))
    train(wrapper, model)
    before = state_of(model, wrapper)[0]
    with pytest.raises(GuardConfigError, match='a closure given to step'):
        wrapper.step(closure=lambda: math.nan)
    assert_equal(model.state_dict(), before)
    wrapper.step(closure=None)


def test_an_optimizer_that_needs_a_closure_is_refused(model):
    with pytest.raises(GuardConfigError, match='LBFGS evaluates the loss'):
        NanGuardOptimWrapper(LBFGS(model.parameters()))


# Bound by NanGuardHook, no context entered


def test_a_bound_model_is_guarded_without_a_context(model, messages):
    wrapper = fp32(model)
    for _ in range(2):
        wrapper.guard.bind([model])
        wrapper.update_params(model(BATCH).square().mean())
    before = state_of(model, wrapper)[0]
    wrapper.guard.bind([model])
    wrapper.update_params(nan_grads(model(BATCH).square().mean()))
    assert_equal(model.state_dict(), before)
    assert warnings_of(messages) == []
    assert any("'2." in text for _, text in messages)  # a parameter's name


def test_a_context_takes_the_place_of_what_was_bound(model):
    """Changes by another wrapper to the other part stay."""
    mine, theirs = model[2], model[1]
    wrapper = NanGuardOptimWrapper(SGD(mine.parameters(), lr=0.1))
    for _ in range(3):
        wrapper.guard.bind([model])
        hidden = theirs(torch.randn(8, 4)).detach()
        with wrapper.optim_context(mine):
            loss = mine(hidden).square().mean()
        wrapper.update_params(nan_grads(loss))
    assert theirs.num_batches_tracked == 3


# Whose a parameter is


def test_a_target_that_no_optimizer_owns_is_put_back(model):
    """The target is written by hand, and still has ``requires_grad``."""
    target = copy.deepcopy(model)
    pair = nn.ModuleList([model, target])
    wrapper = fp32(model)
    for spoil in (None, nan_grads):
        before = copy.deepcopy(target.state_dict())
        with wrapper.optim_context(pair), torch.no_grad():
            for param, other in zip(target.parameters(), model.parameters()):
                param.lerp_(other + 1, 0.1)
        loss = model(BATCH).square().mean()
        wrapper.update_params(spoil(loss) if spoil else loss)
    assert_equal(target.state_dict(), before)


@pytest.mark.parametrize('is_frozen', [False, True])
def test_what_another_optimizer_committed_stays(model, is_frozen):
    mine, theirs = model[2], model[0]
    wrapper = NanGuardOptimWrapper(
        SGD(mine.parameters(), lr=0.1), accumulative_counts=2
    )
    other = NanGuardOptimWrapper(SGD(theirs.parameters(), lr=0.1))
    for _ in range(2):
        theirs.requires_grad_(not is_frozen)
        with wrapper.optim_context(model):
            loss = model(BATCH).square().mean()
        wrapper.backward(wrapper.scale_loss(nan_grads(loss)))
        theirs.requires_grad_(True)
        with other.optim_context(theirs):
            loss = theirs(BATCH).square().mean()
        other.update_params(loss)
    committed = copy.deepcopy(theirs.state_dict())
    wrapper.step()
    assert wrapper.guard.state.total_skips == 1
    assert_equal(theirs.state_dict(), committed)


def test_an_empty_parameter_group(model):
    groups = [dict(params=[]), dict(params=list(model.parameters()))]
    wrapper = NanGuardAmpOptimWrapper(
        AdamW(groups, lr=0.1, fused=True), loss_scale=4.0, **FP16
    )
    train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1


def test_a_buffer_that_went_bad_outside_any_update_halts(model):
    wrapper = fp32(model)
    train(wrapper, model)
    model[1].running_var.data[0] = math.nan
    with pytest.raises(TrainingHalted, match=r'1\.running_var'):
        train(wrapper, model)


# Optimizers and runs of other kinds


class Bare(SGD):
    """An optimizer that does not call ``Optimizer.__init__``."""

    def __init__(self, params, **attributes):
        self.state = {}
        vars(self).update(attributes)
        if not attributes:
            self.param_groups = [dict(params=list(params), lr=0.1)]

    def step(self, closure=None):
        with torch.no_grad():
            for param in self.param_groups[0]['params']:
                param -= 0.1 * param.grad

    def zero_grad(self, set_to_none=True):
        for param in self.param_groups[0]['params']:
            param.grad = None


def test_an_optimizer_that_did_not_call_init_works(model):
    wrapper = NanGuardOptimWrapper(Bare(model.parameters()))
    before = copy.deepcopy(model.state_dict())
    train(wrapper, model, spoil=nan_grads)
    assert_equal(model.state_dict(), before)
    train(wrapper, model)
    assert wrapper.guard.state.num_steps == 1


@OPTIMIZERS.register_module()
class NoTorchOptimizer:
    """An optimizer with what MMEngine calls, and nothing else."""

    def __init__(self, params, lr):
        self.param_groups = [dict(params=list(params), lr=lr)]

    step, zero_grad = Bare.step, Bare.zero_grad


def test_an_optimizer_that_is_not_pytorchs_works_with_all_hooks(tmp_path):
    hooks = guard_hooks(dict(iter=3, site='grad', value='nan'))
    for name in ('Autopsy', 'StateAudit', 'Rollback'):
        hooks[name] = dict(type=f'mmnanguard.{name}Hook')
    runner = make_runner(
        tmp_path,
        wrapper_config(
            optimizer='NoTorchOptimizer', guard=dict(when_exhausted='rollback')
        ),
        default_hooks=dict(hooks, checkpoint=None),
        max_iters=6,
    )
    runner.train()
    assert runner.optim_wrapper.guard.state.num_steps == 5


def test_an_optimizer_without_groups_is_refused(model):
    with pytest.raises(GuardConfigError, match='param_groups'):
        NanGuardOptimWrapper(Bare(model.parameters(), param_groups=[]))


def test_two_runs_do_not_see_the_parameters_of_each_other():
    shared = nn.Linear(3, 3)
    first = NanGuardOptimWrapper(SGD(shared.parameters(), lr=0.1))
    model = nn.Sequential(shared, nn.BatchNorm1d(3), nn.Linear(3, 1))
    second = NanGuardOptimWrapper(SGD(model[2].parameters(), lr=0.1))
    first.guard.bind([shared])
    second.guard.bind([model])
    assert first.guard.params.foreign() == set()
    assert second.guard.params.foreign() == set()


def test_names_of_several_optimizers_carry_their_prefix():
    model = nn.ModuleDict(dict(gen=nn.Linear(3, 3), disc=nn.Linear(3, 1)))
    wrappers = []
    for part in model.values():
        wrappers.append(NanGuardOptimWrapper(SGD(part.parameters(), lr=0.1)))
        wrappers[-1].guard.bind([part], model)
    disc = wrappers[1]
    with disc.optim_context(model.disc):
        loss = model.disc(torch.ones(2, 3)).sum() * math.nan
    disc.guard.attach(object())
    disc.update_params(loss)
    events = disc.guard.take_events()
    names = {tensor.name for tensor in events[0].params}
    assert names == {'disc.weight', 'disc.bias'}
    assert disc.guard.params.foreign() == set(map(id, model.gen.parameters()))
