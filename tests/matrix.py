"""The oracle matrix: every kind of update, struck at every place.

A cell is one short training; windows 2 and 5 are struck. With a process group,
each rank trains on data of its own and DDP reduces. Run as a program, it tells
what MMEngine's own wrappers leave behind in the same cells::

    python tests/matrix.py
"""

import functools
import itertools
from collections import Counter
from typing import NamedTuple, Optional

import torch
from baseline import CpuAmpOptimWrapper
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed as dist
from torch import nn

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

DEVICE = 'cpu'
NUM_WINDOWS = 6
STRUCK = (2, 5)
SCALE = 64.0
OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    'adamw': lambda p: torch.optim.AdamW(p, lr=0.01),
    'fused': lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
CLIPS = {
    'no clip': None,
    'norm': dict(max_norm=0.1),
    'value': dict(type='value', clip_value=0.01),
}
# Beside the matrix; as small as its norms, so that each of them clips.
ADAPTIVE = {
    'tiered': dict(type='TieredClip', tiers=[(0.2, 0.02), (0, 0.1)]),
    'auto': dict(type='AutoClip', percentile=50, window=3),
    'z': dict(
        type='ZClip', alpha=0.5, z_threshold=0.1, warmup=2, max_norm=None
    ),
    'unit': dict(type='AdaptiveGradClip', exclude=['head']),
}
# The last one has its weights in bfloat16, and the first three in float32.
PRECISIONS = ('fp32', 'bf16', 'fp16', 'bf16 weights')
SITES = ('input', 'activation', 'loss', 'grad', 'buffer')
VALUES = ('nan', 'inf', '1e38')


class Kind(NamedTuple):
    """A kind of update."""

    precision: str
    optimizer: str
    clip: str
    accumulation: int


class Fault(NamedTuple):
    site: str
    value: str

    def expected_cause(self, precision: str) -> Optional[str]:
        """Return the cause of a rejection, None if the fault does no harm."""
        if self.site == 'grad':
            is_huge = self.value == '1e38'
            return 'norm_overflow' if is_huge else 'grad_nonfinite'
        if self.site == 'buffer':
            return 'buffer_nonfinite'
        if self.value == '1e38':
            if self.site == 'loss':
                return None  # a finite loss whose gradients are as before
            if precision != 'fp16':
                # The batch norm swallows it, and keeps it.
                return 'buffer_nonfinite'
        return 'loss_nonfinite'


KINDS = [
    Kind(*parts)
    for parts in itertools.product(PRECISIONS, OPTIMIZERS, CLIPS, (1, 3))
]
FAULTS = [
    Fault(*parts)
    for parts in itertools.product(SITES, VALUES)
    if parts != ('buffer', '1e38')  # a finite number where one belongs
]


def lacks(kind):
    """Return what this PyTorch lacks on a CPU for the kind, or ''."""
    if HAS_CPU_SCALER:
        return ''
    if kind.precision == 'fp16':
        return 'float16 on a CPU needs torch>=2.3'
    is_fused = kind.optimizer == 'fused'
    return 'a fused optimizer on a CPU needs torch>=2.4' if is_fused else ''


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, images, strike=None):
        features = self.conv(images)
        if strike is not None:
            features = strike(features)
        return self.head(self.bn(features).relu().mean((2, 3))).float()


def build(kind, is_guarded, **policy):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    if kind.precision == 'bf16 weights':
        model.bfloat16()
    clip = {**CLIPS, **ADAPTIVE}[kind.clip]
    keys = dict(
        optimizer=OPTIMIZERS[kind.optimizer](model.parameters()),
        accumulative_counts=kind.accumulation,
        clip_grad=clip and dict(clip),
    )
    if is_guarded:
        # Each overflow an anomaly, and a scale that does not move: float16
        # gradients at another scale round otherwise.
        keys['guard'] = dict(proven_after=0, **policy)
    if kind.precision in ('fp32', 'bf16 weights'):
        type_ = NanGuardOptimWrapper if is_guarded else OptimWrapper
        return model, type_(**keys)
    dtype = dict(bf16='bfloat16', fp16='float16')[kind.precision]
    if not is_guarded:
        return model, CpuAmpOptimWrapper(loss_scale=SCALE, dtype=dtype, **keys)
    if kind.precision == 'fp16':
        keys['loss_scale'] = dict(init_scale=SCALE, min_scale=SCALE)
    return model, NanGuardAmpOptimWrapper(dtype=dtype, **keys)


def run(kind, fault=None, leave_out=(), is_guarded=True):
    """Train; return the model, the wrapper and the reported events.

    This is collective where there are ranks; ``fault`` strikes this rank.
    """
    net, wrapper = build(kind, is_guarded)
    model, rank = net, 0
    if dist.is_initialized():
        model = MMDistributedDataParallel(net, broadcast_buffers=False)
        rank = dist.get_rank()
    if is_guarded:
        wrapper.guard.attach(object())
    generator = torch.Generator().manual_seed(1 + rank)
    for window in range(1, NUM_WINDOWS + 1):
        for micro_batch in range(kind.accumulation):
            images = torch.randn(4, 1, 5, 5, generator=generator).to(DEVICE)
            if window in leave_out:
                continue
            is_struck = (
                fault is not None
                and window in STRUCK
                and micro_batch == struck_micro_batch(kind, fault)
            )
            train_step(model, wrapper, images, fault if is_struck else None)
    events = wrapper.guard.take_events() if is_guarded else []
    return net, wrapper, events


def struck_micro_batch(kind, fault):
    """Return the place of the struck micro-batch: in the middle of its window.

    With DDP a struck gradient is in the last one, because what DDP has not
    reduced yet would not stay on one rank.
    """
    if fault.site == 'grad' and dist.is_initialized():
        return kind.accumulation - 1
    return kind.accumulation // 2


def train_step(model, wrapper, images, fault):
    site, value = fault or (None, '0')
    net = getattr(model, 'module', model)

    def strike(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = float(value)
        return tensor

    if site == 'input':
        images = strike(images)
    images = images.to(net.conv.weight.dtype)
    with wrapper.optim_context(model):
        logits = model(images, strike if site == 'activation' else None)
        labels = torch.tensor([0, 1, 0, 1], device=DEVICE)
        loss = nn.functional.cross_entropy(logits, labels)
    if site == 'loss':
        loss = loss + (float(value) - loss.detach())
    # What update_params does, with room for a fault before the step.
    wrapper.backward(wrapper.scale_loss(loss))
    with torch.no_grad():
        if site == 'grad':
            net.head.weight.grad[0, 0] = float(value)
        elif site == 'buffer':
            net.bn.running_var[0] = float(value)
    if wrapper.should_update():
        wrapper.step()
        wrapper.zero_grad()


def everything(model, wrapper):
    tensors = dict(model.state_dict())
    for index, state in wrapper.optimizer.state_dict()['state'].items():
        for key, value in state.items():
            if value is not None:  # in PyTorch 2.1, of SGD's momentum
                tensors[f'{index} {key}'] = torch.as_tensor(value)
    return {name: tensor.clone() for name, tensor in tensors.items()}


@functools.lru_cache(maxsize=None)
def run_without(kind, leave_out):
    return run(kind, leave_out=leave_out)[:2]


@functools.lru_cache(maxsize=None)
def oracle(kind):
    """Run the same training with the struck windows left out."""
    return everything(*run_without(kind, STRUCK))


@functools.lru_cache(maxsize=None)
def unfaulted(kind):
    return everything(*run_without(kind, ()))


def differing(left, right):
    """Return the names of tensors that are not equal bit for bit."""
    return [
        name
        for name, tensor in left.items()
        if not torch.equal(
            tensor.flatten().contiguous().view(torch.uint8),
            right[name].flatten().contiguous().view(torch.uint8),
        )
    ]


def main():
    outcomes = {precision: Counter() for precision in PRECISIONS}
    for kind, fault in itertools.product(KINDS, FAULTS):
        if fault.expected_cause(kind.precision) is None:
            continue
        model, wrapper, _ = run(kind, fault, is_guarded=False)
        tensors = everything(model, wrapper).values()
        is_finite = all(torch.isfinite(tensor).all() for tensor in tensors)
        outcomes[kind.precision]['finite' if is_finite else 'not finite'] += 1
    for precision, counts in outcomes.items():
        print(precision, dict(counts))


if __name__ == '__main__':
    main()
