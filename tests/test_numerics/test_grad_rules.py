import pytest
import torch

from mmnanguard.numerics.update.grad_rules import ValueClip


@pytest.mark.parametrize(
    ('grad', 'expected'),
    [
        ([-3.0, -2.0, -1.0, 0.0], [-2.0, -2.0, -1.0, 0.0]),
        ([3.0, 2.0, 1.0, 0.5], [2.0, 2.0, 1.0, 0.5]),
        ([1e30, -1e30], [2.0, -2.0]),
    ],
)
def test_both_sides_are_limited_in_place(grad, expected):
    grad = torch.tensor(grad)
    ValueClip(2.0)([], [grad])
    assert grad.tolist() == expected


@pytest.mark.parametrize(
    'dtypes',
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
)
def test_it_is_pytorchs_clip_grad_value(dtypes):
    params = [torch.nn.Parameter(torch.zeros(9, dtype=d)) for d in dtypes]
    for param in params:
        param.grad = torch.randn(9).to(param.dtype) * 3
    grads = [param.grad.clone() for param in params]
    ValueClip(0.7)(params, grads)
    torch.nn.utils.clip_grad_value_(params, 0.7)
    for grad, param in zip(grads, params):
        assert torch.equal(grad, param.grad)
