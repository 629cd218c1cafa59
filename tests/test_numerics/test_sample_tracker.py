"""The samples tracked for an element are those that change it.

All dimensions are as long as the batch, so the tracker cannot tell them apart
by length.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmnanguard.numerics.probe.sample_tracker import SampleTracker

SIZE = 4
SEED = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(SIZE, SIZE, generator=SEED)
KERNEL = torch.randn(SIZE, SIZE, 3, 3, generator=SEED)
ORDER = torch.tensor([2, 0, 3, 1])


class Follow(TorchDispatchMode):
    def __init__(self, tracker):
        super().__init__()
        self.tracker = tracker

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.tracker.follow(func, args, kwargs or {}, outputs)
        return outputs


def windows(x):
    """Shift and partition as Swin does."""
    x = x.permute(0, 2, 3, 1).roll((-1, -1), (1, 2))
    x = x.view(SIZE, 2, 2, 2, 2, SIZE).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(-1, 4, SIZE)


def merge(x):
    x = x.view(SIZE, 2, 2, 2, 2, SIZE).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(SIZE, 4, 4, SIZE).roll((1, 1), (1, 2))
    return x.permute(0, 3, 1, 2)


def attention(x):
    q = (x @ WEIGHT).reshape(len(x), 4, 2, 2).transpose(1, 2)
    scores = (q @ q.transpose(-2, -1)).softmax(-1)
    return (scores @ q).transpose(1, 2).reshape(x.shape)


def mixup(x):
    return 0.3 * x + 0.7 * x[ORDER]


def cutmix(x):
    x = x.clone()
    x[:, :, 1:3, 1:3] = x[ORDER, :, 1:3, 1:3]
    return x


def written_in_parts(x):
    out = x.new_zeros(2 * SIZE, SIZE, SIZE, SIZE)
    first = out[:SIZE]
    first.copy_(x)
    out[SIZE:].add_(x)
    return out.sin()


def gradient(function):
    def run(x):
        x = x.clone().requires_grad_()
        y = function(x)
        weights = torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape)
        return torch.autograd.grad((y * weights).sum(), x)[0]

    return run


CHECKPOINTED = partial(checkpoint, attention, use_reentrant=False)
CASES = dict(
    pointwise=lambda x: (x * 2 + x.exp()).sigmoid() / 3,
    transposed=lambda x: x.transpose(0, 1).contiguous().sin(),
    flattened=lambda x: x.flatten(1) @ torch.ones(64, SIZE),
    sequence_first=lambda x: x.flatten(2).permute(2, 0, 1) @ WEIGHT,
    rows_folded=lambda x: x.reshape(-1, SIZE) @ WEIGHT,
    linear=lambda x: F.linear(x, WEIGHT, WEIGHT[0]),
    conv=lambda x: F.conv2d(x, KERNEL, padding=1),
    conv_of_windows=lambda x: F.conv1d(windows(x), KERNEL[..., 0]),
    pooled=lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1),
    unfolded=lambda x: F.unfold(x, 2, stride=2),
    padded=lambda x: F.pad(x, (1, 1)).mean((2, 3)),
    windows=windows,
    there_and_back=lambda x: merge(windows(x)),
    attention=lambda x: attention(windows(x)),
    layer_norm=lambda x: F.layer_norm(x.permute(2, 0, 3, 1), (SIZE,)),
    group_norm=lambda x: F.group_norm(x, 2),
    softmax=lambda x: x.softmax(1),
    mixup=mixup,
    cutmix=cutmix,
    conv_of_cutmix=lambda x: F.conv2d(cutmix(x), torch.ones(1, SIZE, 4, 4)),
    split=lambda x: torch.cat([p.cos() for p in x.unbind(0)[::-1]]),
    stacked=lambda x: torch.stack(list(x.chunk(2)), 1),
    indexed=lambda x: x[:, ORDER].index_select(0, ORDER),
    normed=lambda x: x.norm(dim=(1, 2), keepdim=True) + x.var(1, True),
    loss=lambda x: F.cross_entropy(
        x.mean((2, 3)), ORDER, reduction='none', label_smoothing=0.1
    ),
    written_in_parts=written_in_parts,
    strided=lambda x: x.as_strided((SIZE, SIZE), (64, 1)).sin(),
    checkpointed=lambda x: CHECKPOINTED(windows(x)),
    bags=lambda x: nn.functional.glu(x, 1).logsumexp((1, 3)),
    conv_gradient=gradient(
        lambda x: F.gelu(F.conv2d(x, KERNEL)).mean((2, 3)).square()
    ),
    norm_gradient=gradient(lambda x: F.layer_norm(x, (SIZE,)).square()),
    attention_gradient=gradient(lambda x: attention(windows(x)).square()),
    checkpoint_gradient=gradient(lambda x: CHECKPOINTED(windows(x)).square()),
    mixup_gradient=gradient(lambda x: mixup(x.sin())),
)
# Nobody's rather than a wrong one's.
NOBODYS = dict(
    over_the_batch=lambda x: x.transpose(0, 3) @ WEIGHT,
    weight_gradient=lambda x: x.flatten(1).t() @ x.flatten(1),
    cumulated=lambda x: x.cumsum(0)[3:],
    sorted=lambda x: x.sort(0)[0],
    unknown=lambda x: torch.linalg.inv(x[0] + 9 * torch.eye(SIZE)),
)


def follow(function, x):
    tracker = SampleTracker()
    tracker.add(x, range(SIZE))
    with Follow(tracker):
        output = function(x)
    codes = tracker._codes_of(output)
    if codes is None:
        return output, None
    sets = tracker._sets._sets
    owners = [sets[c] for c in codes.expand(output.shape).flatten().tolist()]
    return output, owners


def find_who(function, x):
    """Change the samples in turn; return those that change each element."""
    before = function(x).flatten()
    who = [set() for _ in before]
    for sample in range(SIZE):
        other = x.clone()
        other[sample] += torch.rand(other[sample].shape, generator=SEED) + 0.1
        changed = (function(other).flatten() - before).abs() > 1e-12
        for index in changed.nonzero().flatten().tolist():
            who[index].add(sample)
    return who


@pytest.fixture(autouse=True)
def doubles(monkeypatch):
    torch.set_default_dtype(torch.float64)
    for name in ('WEIGHT', 'KERNEL'):
        monkeypatch.setitem(globals(), name, globals()[name].double())
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('name', CASES)
def test_who_is_told_is_who_changes_it(name):
    x = torch.randn(SIZE, SIZE, SIZE, SIZE)
    _, owners = follow(CASES[name], x)
    assert owners is not None
    assert [set(some) for some in owners] == find_who(CASES[name], x)


@pytest.mark.parametrize('name', NOBODYS)
def test_what_is_not_known_is_nobodys(name):
    x = torch.randn(SIZE, SIZE, SIZE, SIZE)
    _, owners = follow(NOBODYS[name], x)
    if owners is not None:
        who = find_who(NOBODYS[name], x)
        for some, true in zip(owners, who):
            assert not some or some >= true


def test_one_part_of_something_good_is_not_to_blame():
    tracker = SampleTracker()
    x = torch.randn(SIZE, 2)
    tracker.add(x, range(SIZE))
    with Follow(tracker):
        mixed = x + x[ORDER]  # 0 with 2, 1 with 0, 2 with 3, 3 with 1
    bad = torch.zeros(SIZE, 2, dtype=torch.bool)
    bad[0, 1] = bad[2, 0] = True
    assert tracker.samples_of(mixed, bad) == (2,)
    bad[:] = True
    assert tracker.samples_of(mixed, bad) == (0, 1, 2, 3)


@pytest.mark.parametrize('shape', [(0, SIZE), (SIZE, 0), (0, 0)])
def test_an_empty_selection_is_followed(shape):
    def loss(x):
        part = x[: shape[0], : shape[1]]
        empty = (part[:, None] - 2 * part[None]).square()
        return torch.stack([empty.sum(2).sum(0).mean(), x[1].sum()])

    _, owners = follow(loss, torch.ones(SIZE, SIZE))
    assert owners[1] == {1}


def test_statistics_are_nobodys():
    x = torch.randn(SIZE, SIZE)
    _, owners = follow(lambda x: (x - x.mean(0)) / x.std(0), x)
    assert owners == [{index // SIZE} for index in range(SIZE * SIZE)]


def test_memory_that_is_used_again_is_not_mistaken():
    tracker = SampleTracker()
    x = torch.randn(SIZE, 1000)
    tracker.add(x, range(SIZE))
    with Follow(tracker):
        for _ in range(20):
            address = (x + 1).untyped_storage()._cdata
            fresh = torch.zeros(SIZE, 1000)
            assert fresh.untyped_storage()._cdata != address
            assert tracker.samples_of(fresh, fresh == 0) == ()
