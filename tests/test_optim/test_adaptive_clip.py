"""Rejections leave no trace in the statistics of adaptive clipping."""

import copy
import itertools
import math

import matrix
import pytest
import torch
from test_wrappers import FP16, add_nan, amp, fp32, nan_grads, train
from test_wrappers import messages as messages
from test_wrappers import model as model  # a fixture
from torch import nn
from torch.optim import SGD

from mmnanguard.core import AutoClip, GuardConfigError, ZClip
from mmnanguard.optim import NanGuardOptimWrapper

KINDS = [
    matrix.Kind(precision, 'adamw', clip, accumulation)
    for precision, clip, accumulation in itertools.product(
        ('fp32', 'fp16'), matrix.ADAPTIVE, (1, 3)
    )
]
FAULTS = [
    matrix.Fault('loss', 'nan'),
    matrix.Fault('grad', 'nan'),
    matrix.Fault('grad', 'inf'),
    matrix.Fault('grad', '1e38'),
    matrix.Fault('buffer', 'inf'),
]
kinds = pytest.mark.parametrize(
    'kind', KINDS, ids=lambda kind: '-'.join(map(str, kind))
)
faults = pytest.mark.parametrize('fault', FAULTS, ids='-'.join)


def train_windows(kind, windows, fault=None, saved=None):
    """Train some of the windows of ``matrix.run``, after a checkpoint.

    Returns:
        A checkpoint, all tensors, the clip rule and the clip coefficients.
    """
    net, wrapper = matrix.build(kind, is_guarded=True)
    wrapper.guard.attach(object())
    if saved is not None:
        net.load_state_dict(saved['net'])
        wrapper.load_state_dict(saved['wrapper'])
    generator = torch.Generator().manual_seed(1)
    coefs = []
    for window in range(1, matrix.NUM_WINDOWS + 1):
        for part in range(kind.accumulation):
            images = torch.randn(4, 1, 5, 5, generator=generator)
            if window not in windows:
                continue
            is_struck = (
                fault is not None
                and window in matrix.STRUCK
                and part == matrix.struck_micro_batch(kind, fault)
            )
            matrix.train_step(
                net, wrapper, images, fault if is_struck else None
            )
        coefs.append(wrapper.guard.last_clip_coef)
    saved = dict(net=net.state_dict(), wrapper=wrapper.state_dict())
    return (
        copy.deepcopy(saved),
        matrix.everything(net, wrapper),
        wrapper.guard.clip_rule,
        coefs,
    )


ALL = range(1, matrix.NUM_WINDOWS + 1)
NOT_STRUCK = [window for window in ALL if window not in matrix.STRUCK]


@kinds
@faults
def test_a_rejection_leaves_no_trace(kind, fault):
    _, left, rule, coefs = train_windows(kind, ALL, fault)
    _, expected, oracle, _ = train_windows(kind, NOT_STRUCK)
    assert matrix.differing(left, expected) == []
    assert rule == oracle
    if kind.clip in ('tiered', 'auto'):
        assert min(coefs) < 1  # it did clip


@kinds
@pytest.mark.parametrize('stop', [1, 3, 5])
def test_resume_equals_the_uninterrupted_run(kind, stop, tmp_path):
    fault = matrix.Fault('grad', 'nan')
    _, whole, rule, _ = train_windows(kind, ALL, fault)
    saved, *_ = train_windows(kind, ALL[:stop], fault)
    torch.save(saved, tmp_path / 'checkpoint.pth')
    saved = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    _, parts, resumed, _ = train_windows(kind, ALL[stop:], fault, saved)
    assert matrix.differing(parts, whole) == []
    assert resumed == rule


@kinds
def test_it_changes_the_training(kind):
    """Clipping has an effect, so the tests above compare something."""
    _, clipped, *_ = train_windows(kind, ALL)
    _, plain, *_ = train_windows(kind._replace(clip='no clip'), ALL)
    assert matrix.differing(clipped, plain) != []


@pytest.mark.parametrize('make', [fp32, amp])
@pytest.mark.parametrize(
    'clip',
    [
        dict(type='AutoClip', percentile=50),
        dict(type='ZClip', warmup=2, max_norm=None),
    ],
    ids=lambda clip: clip['type'],
)
def test_one_nan_does_not_poison_the_later_updates(model, make, clip):
    """A NaN breaks the published code: in AutoClip each later update is NaN,
    in ZClip none is clipped any more.
    """
    keys = {} if make is fp32 else dict(loss_scale=8.0, **FP16)
    wrapper = make(model, clip_grad=clip, **keys)
    for spoil in (None, None, None, nan_grads, add_nan, None, None):
        train(wrapper, model, spoil=spoil)
    rule = wrapper.guard.clip_rule
    train(wrapper, model, spoil=lambda loss: loss * 100)
    assert wrapper.guard.last_clip_coef < 0.5
    assert wrapper.guard.state.num_steps == 6
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    norms = rule.past.row if isinstance(rule, AutoClip) else [rule.past.mean]
    assert norms
    assert all(map(math.isfinite, norms))


def test_norms_near_the_largest_that_is_committed():
    net = nn.Linear(1, 1, bias=False)
    wrapper = NanGuardOptimWrapper(
        SGD(net.parameters(), lr=1.0),
        clip_grad=dict(type='ZClip', warmup=2, z_threshold=0.5),
    )
    for norm in (1e19, 1.7e19, 1.8e19, 1e19, 1e30, 1e-12):
        net.weight.grad = torch.full((1, 1), norm)
        wrapper.step()
    assert torch.isfinite(net.weight).all()
    assert wrapper.guard.state.total_skips == 1
    past = wrapper.guard.clip_rule.past
    assert 1e18 < past.mean < 2e19
    assert math.isfinite(past.var)


def test_the_statistics_are_of_unscaled_norms_before_clipping(model):
    clip = dict(type='ZClip', max_norm=1e-3)
    rows = []
    for scale in (1.0, 1024.0):
        twin = copy.deepcopy(model)
        keys = dict(loss_scale=dict(init_scale=scale), clip_grad=clip)
        wrapper = amp(twin, **keys, **FP16)
        norms = []
        for _ in range(3):
            train(wrapper, twin)
            logged = wrapper.message_hub.get_scalar('train/grad_norm')
            norms.append(logged.current())
        assert wrapper.guard.last_clip_coef < 0.1
        assert wrapper.guard.clip_rule.past.first == tuple(norms)
        rows.append(norms)
    assert rows[0] == pytest.approx(rows[1], rel=0.02)


@pytest.mark.parametrize('clip', list(matrix.ADAPTIVE.values())[1:3])
def test_the_norm_may_be_another_one(model, clip):
    wrapper = fp32(model, clip_grad=dict(clip, norm_type='inf'))
    train(wrapper, model)
    past = wrapper.guard.clip_rule.past
    (norm,) = past.row if clip['type'] == 'AutoClip' else past.first
    logged = wrapper.message_hub.get_scalar('train/grad_norm').current()
    assert norm == logged > 0


def test_a_user_sees_what_the_checkpoint_lacks(model, messages):
    saved = fp32(model, clip_grad=dict(max_norm=1)).state_dict()
    del saved['guard']['clip']
    wrapper = fp32(model, clip_grad=dict(type='ZClip'))
    train(wrapper, model)
    wrapper.load_state_dict(saved)
    assert wrapper.guard.clip_rule == ZClip()
    assert 'no statistics of ZClip' in messages[-1][1]


# AdaptiveGradClip


@pytest.mark.parametrize(('eps', 'trains'), [(1e-3, True), (1e-30, False)])
def test_weights_that_start_at_zero_train(eps, trains):
    """Such weights need eps: their limit is a share of their norm."""
    net = nn.Linear(3, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    wrapper = fp32(
        net, clip_grad=dict(type='AdaptiveGradClip', clip_factor=0.1, eps=eps)
    )
    wrapper.optimizer.param_groups[0]['lr'] = 1.0
    batch = torch.randn(8, 3)
    target = batch @ torch.tensor([[1.0], [-2.0], [0.5]])
    losses = []
    for _ in range(300):
        with wrapper.optim_context(net):
            loss = (net(batch) - target).square().mean()
        losses.append(loss.item())
        wrapper.update_params(loss)
    assert (losses[-1] < 0.1 * losses[0]) is trains
    assert (net.weight.abs().max().item() > 0.1) is trains


def unit_clip(*exclude):
    return dict(type='AdaptiveGradClip', clip_factor=1e-6, exclude=exclude)


@pytest.mark.parametrize('make', [fp32, amp])
def test_what_is_excluded_is_not_clipped(model, make):
    keys = {} if make is fp32 else dict(dtype='bfloat16')
    before = copy.deepcopy(model.state_dict())
    wrapper = make(model, clip_grad=unit_clip(r'^2\.'), **keys)
    train(wrapper, model)
    moved = {
        name: (param.detach() - before[name]).norm().item()
        for name, param in model.named_parameters()
    }
    for name in ('0.weight', '1.weight', '1.bias'):
        assert moved[name] < 1e-5
    assert moved['2.weight'] > 1e-3
    assert moved['2.bias'] > 1e-3


def test_a_pattern_in_no_name_is_said_before_anything_happens(model):
    wrapper = fp32(model, clip_grad=unit_clip('0.weigth'))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GuardConfigError, match=r"'0\.weigth'.*'0\.weight'"):
        train(wrapper, model)
    assert wrapper.guard.state.num_updates == 0
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name])


def test_a_parameter_that_comes_later_is_held_against_the_patterns(model):
    wrapper = fp32(model, clip_grad=unit_clip('2.weight|late'))
    train(wrapper, model)
    model.add_module('late', nn.Linear(1, 1))
    wrapper.optimizer.add_param_group(dict(params=model.late.parameters()))
    before = model.late.weight.item()
    train(wrapper, model)
    assert abs(model.late.weight.item() - before) > 1e-4
    rule = wrapper.guard.grad_rule
    assert id(model.late.weight) in rule.left_out
    assert wrapper.guard.grad_rule is rule


def test_names_are_asked_for_once(model, monkeypatch):
    wrapper = fp32(model, clip_grad=unit_clip('2'))
    names, asked = wrapper.guard.names, []
    monkeypatch.setattr(
        wrapper.guard, 'names', lambda: asked.append(1) or names()
    )
    for _ in range(3):
        train(wrapper, model)
    assert asked == [1]


def test_own_clip_grad_of_a_subclass_is_not_called_beside_it(model):
    """MMEngine calls it only for its own kinds of clip_grad."""

    def _clip_grad(self):
        raise AssertionError

    type_ = type('Own', (NanGuardOptimWrapper,), dict(_clip_grad=_clip_grad))
    optimizer = SGD(model.parameters(), lr=0.1)
    wrapper = type_(optimizer, clip_grad=dict(type='AutoClip'))
    train(wrapper, model)
    assert len(wrapper.guard.clip_rule.past.row) == 1
