"""Clipping by AdaptiveGradClip, a rule on tensors."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics import AdaptiveGradClip

SHAPES = [(), (1,), (7,), (4, 3), (5, 2, 3), (6, 3, 2, 2), (1, 1, 8)]


def make(shapes, weight=1.0, grad=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(s, dtype=dtype) * weight) for s in shapes
    ]
    for param in params:
        # From far below the limit to far above it.
        scale = torch.logspace(-4, 1, max(param.numel(), 1), dtype=dtype)
        param.grad = torch.randn(param.shape, dtype=dtype) * grad
        param.grad *= scale[: param.numel()].view(param.shape)
    return params, [param.grad for param in params]


def published(weights, grad, clip_factor, eps):
    """Clip unit by unit, by the paper's formula."""
    weights, grad = np.array(weights), np.array(grad)
    units = [(weights, grad)] if grad.ndim <= 1 else zip(weights, grad)
    clipped = []
    for w, g in units:
        limit = clip_factor * max(np.linalg.norm(w.ravel()), eps)
        norm = np.linalg.norm(g.ravel())
        clipped.append(g * limit / norm if norm > limit else g)
    return np.array(clipped).reshape(grad.shape)


@pytest.mark.parametrize('clip_factor', [0.01, 0.5])
@pytest.mark.parametrize('weight', [0.0, 1e-5, 1.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_it_is_the_papers(clip_factor, weight, dtype):
    params, grads = make(SHAPES, weight, dtype=dtype)
    expected = [
        published(p.tolist(), g.tolist(), clip_factor, 1e-3)
        for p, g in zip(params, grads)
    ]
    before = [grad.clone() for grad in grads]
    AdaptiveGradClip(clip_factor)(params, grads)
    for got, want in zip(grads, expected):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)
    changed = [not torch.equal(*pair) for pair in zip(grads, before)]
    assert any(changed)


def test_a_unit_within_its_limit_is_left_as_it_is():
    params, grads = make([(4, 3)], grad=1e-6)
    before = grads[0].clone()
    AdaptiveGradClip()(params, grads)
    assert torch.equal(grads[0], before)


def test_a_unit_is_an_output_row():
    """A spike of one row does not affect other rows; a bias is one unit."""
    linear = nn.Linear(3, 2)
    nn.init.ones_(linear.weight)
    nn.init.ones_(linear.bias)
    linear.weight.grad = torch.tensor([[9.0, 0.0, 0.0], [1e-3, 0.0, 0.0]])
    linear.bias.grad = torch.tensor([9.0, 1e-3])
    params = list(linear.parameters())
    AdaptiveGradClip(0.1)(params, [param.grad for param in params])
    row = 0.1 * math.sqrt(3)
    assert linear.weight.grad[:, 0].tolist() == pytest.approx([row, 1e-3])
    assert linear.bias.grad[1] < 1e-4


def test_gradients_of_0_and_the_largest():
    params, grads = make([(3, 2), (2,)])
    grads[0].zero_()
    grads[1].fill_(1.2e19)  # a norm of 1.7e19, whose square is finite
    AdaptiveGradClip()(params, grads)
    assert grads[0].tolist() == [[0.0, 0.0]] * 3
    limit = 0.01 * params[1].detach().norm()
    torch.testing.assert_close(grads[1].norm(), limit)


def test_channels_last():
    params, grads = make([(4, 3, 5, 5)])
    other = nn.Parameter(params[0].detach().clone())
    grad = grads[0].clone(memory_format=torch.channels_last)
    AdaptiveGradClip()(params, grads)
    AdaptiveGradClip()([other], [grad])
    torch.testing.assert_close(grad, grads[0])


def test_nothing_to_clip():
    AdaptiveGradClip()([], [])
    params, grads = make([(2, 2)])
    before = grads[0].clone()
    names = {id(params[0]): ['head.weight']}
    rule = AdaptiveGradClip(exclude=['head']).resolve_names(names)
    rule(params, grads)
    assert torch.equal(grads[0], before)


def test_of_a_sparse_gradient_the_rows_that_it_has():
    dense = nn.Embedding(6, 3)
    sparse = nn.Embedding.from_pretrained(
        dense.weight.detach().clone(), freeze=False, sparse=True
    )
    index = torch.tensor([4, 1, 4])
    for module in (dense, sparse):
        module(index).square().sum().backward()
    sparse.weight.grad = sparse.weight.grad.coalesce()
    rule = AdaptiveGradClip()
    rule([dense.weight], [dense.weight.grad])
    rule([sparse.weight], [sparse.weight.grad._values()])
    got = sparse.weight.grad.to_dense()
    torch.testing.assert_close(got, dense.weight.grad)
    assert got.abs().max() < 0.1  # it did clip


def test_sparse_in_more_than_rows_is_refused():
    param = nn.Parameter(torch.ones(2, 2))
    grad = torch.sparse_coo_tensor(
        [[0], [1]], [3.0], (2, 2), check_invariants=True
    ).coalesce()
    param.grad = grad
    with pytest.raises(GuardConfigError, match='exclude'):
        AdaptiveGradClip()([param], [grad._values()])


# What is left out

NAMES = {
    1: ['backbone.conv.weight'],
    2: ['backbone.conv.bias'],
    3: ['head.fc.weight', 'tied.weight'],
}


@pytest.mark.parametrize(
    ('exclude', 'left_out'),
    [
        ([], set()),
        (['head'], {3}),
        (['tied'], {3}),
        (['bias$', r'^head\.'], {2, 3}),
        (('conv',), {1, 2}),
    ],
)
def test_patterns(exclude, left_out):
    rule = AdaptiveGradClip(exclude=exclude).resolve_names(NAMES)
    assert rule.left_out == left_out
    assert rule.known == {1, 2, 3}


def test_a_pattern_in_no_name():
    rule = AdaptiveGradClip(exclude=['head', 'backbone.cnv'])
    with pytest.raises(GuardConfigError) as caught:
        rule.resolve_names(NAMES)
    for word in (
        'optim_wrapper.clip_grad.exclude',
        "'backbone.cnv'",
        'none of the 3 parameters',
        "'backbone.conv.bias'",
    ):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        (dict(clip_factor=0), ['clip_factor', '0', 'above 0']),
        (dict(clip_factor=math.nan), ['clip_factor', 'nan']),
        (dict(clip_factor=math.inf), ['clip_factor', 'inf']),
        (dict(eps=0), ['eps', '0', 'above 0']),
        (dict(eps=1e-38), ['eps', '1e-38', 'larger', 'float32']),
        (dict(exclude='head'), ['exclude', "'head'", 'a list']),
        (dict(exclude=[1]), ['exclude', '[1]', 'a list']),
        (dict(exclude=['(']), ['exclude', "'('", 'regex']),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(keys, words):
    with pytest.raises(GuardConfigError) as caught:
        AdaptiveGradClip(**keys)
    for word in ['optim_wrapper.clip_grad', 'must be', *words]:
        assert word in str(caught.value)
