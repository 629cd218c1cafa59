import pytest
import torch
from mmengine.registry import MODELS
from torch.autograd import gradcheck

from mmnanguard.core import GuardConfigError

LAYER = dict(type='mmnanguard.SafeAdaLNZero', embed_dims=4, cond_dims=3)


def build(size=0.0, **keys):
    """Build the layer with large weights, as after large steps."""
    layer = MODELS.build({**LAYER, **keys})
    torch.nn.init.constant_(layer.project.weight, size)
    return layer


def test_begins_as_the_norm_with_a_closed_gate():
    layer, x = MODELS.build(LAYER), torch.randn(2, 5, 4)

    y, gate = layer(x, torch.randn(2, 3))

    assert torch.equal(y, layer.norm(x))
    assert gate.shape == (2, 1, 4)
    assert (gate == 0).all()
    y.sum().backward()
    assert (layer.project.weight.grad != 0).any()  # it can leave zero


def test_an_init_cfg_overrides_the_zeros():
    init = dict(type='Constant', layer='Linear', val=0.5)
    layer = MODELS.build(dict(LAYER, init_cfg=init))
    layer.init_weights()
    assert (layer.project.weight == 0.5).all()


@pytest.mark.parametrize(
    ('raw', 'scale'),
    [(1e3, 1.5), (-1e3, 0.5), (3e38, 1.5), (float('inf'), 1.5)],
)
def test_the_scale_is_bounded(raw, scale):
    layer, x = build(max_scale=0.5), torch.randn(2, 5, 4)
    with torch.no_grad():
        layer.project.bias[:4] = raw

    y, _ = layer(x, torch.zeros(2, 3))

    assert torch.allclose(y, scale * layer.norm(x))


def test_near_zero_the_scale_is_as_without_a_bound():
    layer, x, cond = build(1e-3), torch.randn(2, 5, 4), torch.randn(2, 3)
    raw = layer.project(torch.nn.functional.silu(cond)).unsqueeze(1)
    scale, shift, gate = raw.chunk(3, dim=-1)

    y, got = layer(x, cond)

    assert torch.allclose(y, layer.norm(x) * (1 + scale) + shift, atol=1e-6)
    assert torch.equal(got, gate)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', [0.0, 6e4, 1e-7])
def test_finite_under_autocast(dtype, size):
    layer = build(0.5)
    x = torch.full((2, 5, 4), size, dtype=dtype, requires_grad=True)

    with torch.autocast('cpu', dtype=dtype):
        y, gate = layer(x, torch.ones(2, 3))
        (y.sum() + gate.sum()).backward()

    assert y.dtype == gate.dtype == dtype
    for tensor in (y, gate, x.grad, layer.project.weight.grad):
        assert tensor.isfinite().all()


def test_modulates_in_float32():
    layer, x = build(0.1), torch.randn(2, 50, 4).half()
    cond = torch.ones(2, 3, dtype=torch.float16)

    with torch.autocast('cpu', dtype=torch.float16):
        y, _ = layer(x, cond)
        raw = layer.project(torch.nn.functional.silu(cond)).float()

    scale, shift, _ = raw.unsqueeze(1).chunk(3, dim=-1)
    scale = 1 + 2 * (scale / 2).tanh()
    assert torch.equal(y, (layer.norm(x.float()) * scale + shift).half())


def test_gradcheck_and_one_graph():
    layer = build(0.1, eps=1e-2).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    cond = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    assert gradcheck(layer, (x, cond))
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    for got, want in zip(compiled(x, cond), layer(x, cond)):
        assert torch.equal(got, want)


def test_a_bound_is_above_zero():
    with pytest.raises(GuardConfigError, match='max_scale is 0'):
        build(max_scale=0)
