"""The guarantee holds for models of unusual make."""

import functools
import math
from typing import Callable, NamedTuple, Tuple

import pytest
import torch
from baseline import CpuAmpOptimWrapper
from mmengine.optim import OptimWrapper
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.optim import SGD, AdamW
from torch.utils.checkpoint import checkpoint
from toys import assert_same, guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.numerics.update.blame import TensorNames
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

NUM_UPDATES = 6
STRUCK = (2, 5)
SCALE = 64.0
NO_REENTRANT = CheckpointImpl.NO_REENTRANT


class Tied(nn.Module):
    """A model whose head has the weight of its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


class Scalars(nn.Module):
    """A model with parameters and buffers without a dimension."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shift = nn.Parameter(torch.tensor(0.5))
        self.register_buffer('mean', torch.tensor(0.0))

    def forward(self, images):
        features = images * self.scale + self.shift
        with torch.no_grad():
            self.mean.lerp_(features.mean().float(), 0.1)
        return features - self.mean


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4, sparse=True)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, tokens):
        return self.norm(self.embed(tokens))


class PartlyUsed(nn.Module):
    """A model that runs one branch per update, never another, and freezes a
    third.
    """

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))
        self.idle = nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, images):
        branch = self.branches[int(images[0, 0].detach() > 0)]
        return self.norm(branch(self.frozen(images)))


class MixedDtypes(nn.Module):
    """A model with float32 and float64 parameters and bfloat16 activations."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        features = self.norm(self.fine(images.double()).float())
        weight = self.head.weight.bfloat16()
        return nn.functional.linear(features.bfloat16(), weight)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer('mean', torch.zeros(1, 4, 3, 3))
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        images = images.to(memory_format=torch.channels_last)
        features = self.norm(self.conv(images))
        with torch.no_grad():
            self.mean.lerp_(features.mean(0, keepdim=True).float(), 0.1)
        return features - self.mean


class Checkpointed(nn.Module):
    """A model whose norm layer runs in forward and again in backward."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.use_reentrant = use_reentrant

    def forward(self, images):
        return checkpoint(
            self.body, self.stem(images), use_reentrant=self.use_reentrant
        )


class CheckpointWrapped(Checkpointed):
    def __init__(self):
        super().__init__(use_reentrant=None)
        self.body = checkpoint_wrapper(self.body, NO_REENTRANT)

    def forward(self, images):
        return self.body(self.stem(images))


def tokens(generator):
    # Each once: of duplicates, the order of summing would matter.
    return torch.randperm(5, generator=generator)[:4]


def rows(generator):
    return torch.randn(4, 3, generator=generator)


def images(generator):
    return torch.randn(4, 3, 5, 5, generator=generator)


class Case(NamedTuple):
    """A model, and the place of its fault.

    Attributes:
        struck: The module whose output goes bad, and the parameter whose
            gradient does.
        param_name: The reported name of that parameter, if it differs.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], torch.Tensor]
    struck: Tuple[str, str]
    param_name: str = ''
    optimizer: Callable = functools.partial(AdamW, lr=0.01)


CASES = {
    'tied': Case(
        Tied, tokens, ('norm', 'embed.weight'), 'embed.weight = head.weight'
    ),
    'scalars': Case(Scalars, rows, ('', 'shift')),
    'scalars, fused': Case(
        Scalars,
        rows,
        ('', 'shift'),
        optimizer=functools.partial(AdamW, lr=0.01, fused=True),
    ),
    'sparse': Case(
        Sparse,
        tokens,
        ('embed', 'embed.weight'),
        optimizer=functools.partial(SGD, lr=0.1),
    ),
    'partly used': Case(PartlyUsed, rows, ('norm', 'norm.bias')),
    'mixed dtypes': Case(MixedDtypes, rows, ('fine', 'fine.weight')),
    'channels last': Case(ChannelsLast, images, ('conv', 'conv.weight')),
    'checkpointed': Case(
        lambda: Checkpointed(use_reentrant=False),
        rows,
        ('body.0', 'body.0.weight'),
    ),
    'checkpointed, reentrant': Case(
        lambda: Checkpointed(use_reentrant=True),
        rows,
        ('body.0', 'body.0.weight'),
    ),
    'checkpoint wrapper': Case(
        CheckpointWrapped,
        rows,
        (
            'body._checkpoint_wrapped_module.0',
            'body._checkpoint_wrapped_module.0.weight',
        ),
        'body.0.weight',
    ),
}
PRECISIONS = ['fp32', 'bf16', 'fp16']


def build(precision, optimizer, is_guarded=True):
    keys = dict(optimizer=optimizer)
    if is_guarded:
        keys['guard'] = dict(proven_after=0)  # each overflow an anomaly
    if precision == 'fp32':
        return (NanGuardOptimWrapper if is_guarded else OptimWrapper)(**keys)
    keys['dtype'] = dict(bf16='bfloat16', fp16='float16')[precision]
    if not is_guarded:
        return CpuAmpOptimWrapper(loss_scale=SCALE, **keys)
    if precision == 'fp16':
        # One that does not move: gradients round otherwise at another.
        keys['loss_scale'] = dict(init_scale=SCALE, min_scale=SCALE)
    return NanGuardAmpOptimWrapper(**keys)


def run(case, precision, site=None, leave_out=(), is_guarded=True):
    """Train; return all tensors that are left, and the events."""
    torch.manual_seed(0)
    model = case.model()
    optimizer = case.optimizer(model.parameters())
    guarded = build(precision, optimizer, is_guarded)
    events = []
    if is_guarded:
        guarded.guard.attach(events)
    generator = torch.Generator().manual_seed(1)
    for update in range(1, NUM_UPDATES + 1):
        batch = case.batch(generator)
        if update not in leave_out:
            is_struck = site is not None and update in STRUCK
            train_step(model, guarded, batch, case, is_struck and site)
    if is_guarded:
        events = guarded.guard.take_events()
        assert guarded.guard.state.num_updates == NUM_UPDATES - len(leave_out)
    return everything(model, optimizer), events


def train_step(model, guarded, batch, case, site):
    module, param = case.struck
    handle = None
    if site == 'activation':
        # In a checkpointed module it strikes both times.
        handle = model.get_submodule(module).register_forward_hook(
            lambda module, args, output: strike(output.clone())
        )
    with guarded.optim_context(model):
        loss = model(batch).float().square().mean()
    if site == 'loss':
        loss = loss + (math.nan - loss.detach())
    guarded.backward(guarded.scale_loss(loss))
    if site == 'grad':
        grad = model.get_parameter(param).grad
        strike(grad._values() if grad.is_sparse else grad)
    if handle is not None:
        handle.remove()
    guarded.step()
    guarded.zero_grad()


@torch.no_grad()
def strike(tensor):
    tensor[(0,) * tensor.dim()] = math.inf
    return tensor


def everything(model, optimizer):
    """Return all tensors, including buffers outside of the state dict."""
    tensors = dict(model.named_parameters(), **dict(model.named_buffers()))
    for index, state in optimizer.state_dict()['state'].items():
        for key, value in state.items():
            if value is not None:  # in PyTorch 2.1, of SGD's momentum
                tensors[f'{index} {key}'] = torch.as_tensor(value)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_left_alike(left, right):
    """Compare bit for bit, NaN included, and by memory format."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert tensor.dtype == other.dtype, name
        assert tensor.stride() == other.stride(), name
        assert torch.equal(
            tensor.flatten().contiguous().view(torch.uint8),
            other.flatten().contiguous().view(torch.uint8),
        ), name


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', CASES)
def test_equals_plain(name, precision):
    guarded, events = run(CASES[name], precision)
    assert events == []
    plain, _ = run(CASES[name], precision, is_guarded=False)
    assert_left_alike(guarded, plain)


@pytest.mark.parametrize('site', ['activation', 'loss', 'grad'])
@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', CASES)
def test_equals_the_run_without_those_updates(name, precision, site):
    case = CASES[name]
    struck, events = run(case, precision, site)
    expected, _ = run(case, precision, leave_out=STRUCK)
    assert_left_alike(struck, expected)
    cause = 'grad_nonfinite' if site == 'grad' else 'loss_nonfinite'
    assert [event.cause.value for event in events] == [cause] * len(STRUCK)
    if site == 'grad':
        for event in events:
            names = [param.name for param in event.params]
            assert names == [case.param_name or case.struck[1]]


# An update in which no parameter has a gradient


def run_without_gradients(precision, value, leave_out=(), is_guarded=True):
    """Train with updates 2 and 5 run forward, but with a constant loss."""
    torch.manual_seed(0)
    model = Scalars()
    optimizer = AdamW(model.parameters(), lr=0.01)
    guarded = build(precision, optimizer, is_guarded)
    generator = torch.Generator().manual_seed(1)
    for update in range(1, NUM_UPDATES + 1):
        batch = rows(generator)
        if update in leave_out:
            continue
        with guarded.optim_context(model):
            loss = model(batch).float().square().mean()
        if update in STRUCK:
            loss = torch.full_like(loss, value).requires_grad_()
        guarded.update_params(loss)
    return everything(model, optimizer), guarded


@pytest.mark.parametrize('precision', PRECISIONS)
def test_without_a_gradient_nothing_of_it_is_left(precision):
    struck, guarded = run_without_gradients(precision, math.nan)
    expected, _ = run_without_gradients(precision, math.nan, STRUCK)
    assert_left_alike(struck, expected)
    assert guarded.guard.state.total_skips == len(STRUCK)


# PyTorch's scaler raises 'No inf checks were recorded' in fp16.
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_without_a_gradient_equals_plain(precision):
    left, guarded = run_without_gradients(precision, 1.0)
    expected, _ = run_without_gradients(precision, 1.0, is_guarded=False)
    assert_left_alike(left, expected)
    assert guarded.guard.state.num_steps == NUM_UPDATES


# MMEngine's own activation checkpointing


@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
@pytest.mark.parametrize(
    ('type_', 'plain', 'keys'),
    [
        ('NanGuardOptimWrapper', 'OptimWrapper', {}),
        (
            'NanGuardAmpOptimWrapper',
            CpuAmpOptimWrapper.__name__,
            dict(dtype='float16', loss_scale=dict(init_scale=SCALE)),
        ),
    ],
    ids=['fp32', 'fp16'],
)
def test_activation_checkpointing_of_the_runner(tmp_path, type_, plain, keys):
    def train(name, type_, hooks, leave_out=()):
        runner = make_runner(
            tmp_path / name,
            wrapper(type_, **keys),
            cfg=dict(activation_checkpointing=['backbone.1']),
            leave_out=leave_out,
            default_hooks=hooks,
        )
        runner.train()
        return runner

    # No overflow: the scale would come down, and gradients round otherwise.
    faults = {3: ('loss', 'nan'), 4: ('input', 'nan'), 9: ('buffer', 'inf')}
    hooks = guard_hooks(
        *(
            dict(iter=number, site=site, value=value)
            for number, (site, value) in faults.items()
        )
    )
    clean = train('clean', type_, guard_hooks())
    assert_same(clean, train('plain', plain, {}))
    # Forward, and again in backward.
    assert clean.model.backbone[1].num_batches_tracked == 2 * 10
    faulty = train('faulty', type_, hooks)
    assert_same(faulty, train('oracle', type_, {}, leave_out=list(faults)))
    assert [row['iter'] for row in read_rows(faulty)] == list(faults)


# Names


class Sharded(nn.Module):
    """A stub of FullyShardedDataParallel, with its attribute for names."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module

    def forward(self, images):
        return self._fsdp_wrapped_module(images)


def test_no_wrapper_of_a_module_is_part_of_a_name():
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    outer = nn.Sequential(Sharded(checkpoint_wrapper(inner, NO_REENTRANT)))
    names = TensorNames([nn.DataParallel(outer)], [])
    assert names.of_param(inner[0].weight) == '0.0.weight'
    assert names.of_buffer(inner[1], 'running_var') == '0.1.running_var'
