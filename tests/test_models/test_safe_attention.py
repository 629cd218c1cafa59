import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.autograd import gradcheck

from mmnanguard.core import GuardConfigError

LAYER = dict(type='mmnanguard.SafeAttention', embed_dims=8, num_heads=2)
MASK = torch.tensor([[True, True, True], [True, False, True], [False] * 3])


def build(**keys):
    torch.manual_seed(0)
    return MODELS.build({**LAYER, **keys})


def run(layer, x, mask, dtype=None):
    """Return the result, the gradient of x, and those of the weights."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = layer(x, mask)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    out.backward(weights.to(out))
    return (out.detach(), x.grad, *(p.grad for p in layer.parameters()))


@pytest.mark.parametrize('mask', [None, MASK[:2]])
def test_equals_the_attention_of_torch(mask):
    layer, x = build(), torch.randn(2, 3, 8)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    plain.in_proj_weight, plain.in_proj_bias = layer.qkv.parameters()
    plain.out_proj.weight, plain.out_proj.bias = layer.proj.parameters()
    padding = None if mask is None else ~mask

    want, _ = plain(x, x, x, key_padding_mask=padding)

    kept = torch.ones(2, 3, dtype=torch.bool) if mask is None else mask
    assert torch.allclose(layer(x, mask)[kept], want[kept], atol=1e-6)


@pytest.mark.parametrize('hidden', [float('nan'), float('inf'), 3e38])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_padding_reaches_nothing(hidden, dtype):
    layer, x = build(), torch.randn(3, 3, 8)

    clean = run(layer, x, MASK, dtype)
    poisoned = x.masked_fill(~MASK.unsqueeze(-1), hidden)
    for got, want in zip(run(layer, poisoned, MASK, dtype), clean):
        assert got.isfinite().all()
        assert torch.equal(got, want)

    out, grad, *_ = clean
    assert (out[~MASK] == 0).all()
    assert (grad[~MASK] == 0).all()
    assert (out[2] == 0).all()  # all padding


def test_a_sample_of_padding_alone_fails_by_hand():
    """Training mode fails; evaluation has a fast path that is different."""
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 3, 8)

    out, _ = plain(x, x, x, key_padding_mask=~MASK)

    assert out[2].isnan().all()


def test_scores_beyond_float16():
    """Queries and keys of 300 have products of 90,000 per channel."""
    layer = build(qkv_bias=False)
    with torch.no_grad():
        layer.qkv.weight.copy_(300 * torch.eye(8).repeat(3, 1))
        layer.proj.weight.copy_(torch.eye(8) / 300)
    x = torch.ones(3, 3, 8)
    x[:, 1] = -1

    results = run(layer, x, MASK, torch.float16)

    for result in results:
        assert result.isfinite().all()
    wanted = run(layer, x, MASK)[0].half()
    assert torch.allclose(results[0], wanted, rtol=1e-2, atol=1e-3)
    query = (x @ layer.qkv.weight[:8].T).half()
    assert (query @ query.transpose(1, 2)).isinf().any()


def test_gradcheck_and_one_graph():
    layer = build().double()
    x = torch.randn(3, 3, 8, dtype=torch.float64, requires_grad=True)

    assert gradcheck(lambda x: layer(x, MASK), x)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(x, MASK), layer(x, MASK))


def test_dropout_is_for_training():
    layer = build(attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(3, 3, 8)

    assert not torch.equal(layer(x, MASK), layer(x, MASK))
    layer.eval()
    assert torch.equal(layer(x, MASK), layer(x, MASK))


@pytest.mark.parametrize(
    ('call', 'word'),
    [
        (lambda: build(num_heads=3), 'a multiple of num_heads=3'),
        (lambda: build()(torch.ones(3, 3, 8), MASK.float()), 'mask'),
    ],
)
def test_mistakes_are_told(call, word):
    with pytest.raises(GuardConfigError, match=word):
        call()
