import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer
from torch.autograd import gradcheck
from torch.nn import functional as F

from mmnanguard.core import GuardConfigError
from mmnanguard.models import SafeRMSNorm

NORM = dict(type='mmnanguard.SafeRMSNorm')
HALVES = [torch.float16, torch.bfloat16]


def backward(layer, x):
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0]).to(y)
    y.backward(upstream.expand(y.shape))
    return y.detach(), x.grad


def plain(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def pytorchs(x):
    """Return PyTorch's own RMS norm, which exists since 2.4."""
    if not hasattr(F, 'rms_norm'):
        return plain(x)
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


def test_mmcv_builds_it_from_a_norm_cfg():
    name, layer = build_norm_layer(NORM, 8, postfix=1)

    assert name == 'rms_norm1'
    assert type(layer) is SafeRMSNorm
    assert (layer.num_features, layer.eps) == (8, 1e-5)
    frozen = build_norm_layer(dict(NORM, requires_grad=False, eps=1e-3), 8)[1]
    assert not frozen.weight.requires_grad
    assert frozen.eps == 1e-3
    assert not [*build_norm_layer(dict(NORM, affine=False), 8)[1].parameters()]


def test_channels_of_images():
    conv = ConvModule(3, 4, 3, norm_cfg=dict(NORM, dim=1), act_cfg=None)
    with torch.no_grad():
        conv.norm.weight.copy_(torch.arange(4.0))
    images = torch.randn(2, 3, 5, 5)

    rows = conv.conv(images).movedim(1, -1)
    wanted = pytorchs(rows) * conv.norm.weight

    assert torch.allclose(conv(images), wanted.movedim(-1, 1), atol=1e-6)


@pytest.mark.parametrize('size', [1e-12, 1e-4, 1.0, 1e4, 1e15])
def test_equals_the_plain_norm(size):
    layer, x = SafeRMSNorm(4), size * torch.randn(5, 4)

    got = backward(layer, x)
    want = backward(pytorchs, x.double())

    for mine, plain in zip(got, want):
        scale = plain.abs().amax().item()
        assert torch.allclose(mine.double(), plain, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ('size', 'dtype'),
    [(300.0, torch.float16), (1e20, torch.bfloat16), (1e20, torch.float32)],
)
def test_squares_do_not_overflow(size, dtype):
    x = size * torch.tensor([[1.0, -1.0, 2.0, 0.0]]).to(dtype)

    y, grad = backward(SafeRMSNorm(4), x)
    naive, naive_grad = backward(plain, x)

    wanted = plain(torch.tensor([[1.0, -1.0, 2.0, 0.0]])).to(dtype)
    assert torch.allclose(y, wanted, rtol=1e-2)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0
    assert (naive == 0).all()  # x / Inf, and it never learns
    assert (naive_grad == 0).all()


@pytest.mark.parametrize('dtype', [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize('eps', [1e-5, 1e-12])
def test_finite_on_zeros_and_extremes(dtype, eps):
    top = torch.finfo(dtype).max
    tiny = torch.finfo(dtype).tiny
    rows = [[0] * 4, [top] * 4, [top, 0, -top, 1], [tiny] * 4, [0, 0, 0, tiny]]

    y, grad = backward(
        SafeRMSNorm(4, eps=eps), torch.tensor(rows, dtype=dtype)
    )

    assert y.dtype == grad.dtype == dtype
    assert y.isfinite().all()
    assert grad.isfinite().all()
    assert (y[0] == 0).all()
    assert torch.allclose(y[1], torch.ones(4).to(dtype))


def test_the_gradient_of_a_weight_in_float16_is_limited():
    layer, x = SafeRMSNorm(4).half(), torch.ones(9, 4).half()

    layer(x).backward(torch.full_like(x, 6e4))

    assert (layer.weight.grad == torch.finfo(torch.float16).max).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_statistics_are_in_float32_under_autocast(dtype):
    layer, x = SafeRMSNorm(256), torch.randn(3, 256).to(dtype)
    wanted = pytorchs(x.double())

    with torch.autocast('cpu', dtype=dtype):
        y = layer(x)
        assert layer(x.float()).dtype == torch.float32

    assert torch.equal(y, wanted.to(dtype))


def test_gradcheck_and_one_graph():
    x = torch.randn(3, 4, dtype=torch.float64)
    x[0] = 0
    layer = SafeRMSNorm(4, eps=1e-2).double()

    assert gradcheck(layer, x.requires_grad_())
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(x), layer(x))


def test_a_nan_stays_visible_and_in_its_row():
    x = torch.ones(2, 4)
    x[0, 1] = float('nan')

    y = SafeRMSNorm(4)(x)

    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_eps_is_needed():
    with pytest.raises(GuardConfigError, match=r'SafeRMSNorm\.eps is 0'):
        SafeRMSNorm(4, eps=0)
