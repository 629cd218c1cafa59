"""Engines of DeepSpeed on a CPU, guarded and alone, and what they keep."""

import functools
import gc
import importlib
import itertools
import logging
from typing import NamedTuple

import mmengine._strategy.deepspeed as mmengine_strategy
import torch
from mmengine._strategy.deepspeed import (
    DeepSpeedOptimWrapper,
    MMDeepSpeedEngineWrapper,
)
from torch import distributed as dist
from torch import nn

from mmnanguard.optim import NanGuardDeepSpeedOptimWrapper

NUM_WINDOWS = 6
STRUCK = (2, 5)
SCALE_POWER = 7
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
OPTIMIZERS = dict(
    sgd=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    adamw=functools.partial(torch.optim.AdamW, lr=0.01),
)


class Kind(NamedTuple):
    stage: int
    precision: str
    optimizer: str
    accumulation: int
    clip: float = 0.0
    is_offloaded: bool = False
    variation: str = ''


# Settings of a strategy, by name; 'groups' and 'forward' are of the model.
VARIATIONS = {
    'float32 accumulation': dict(data_types=dict(grad_accum_dtype='fp32')),
    'round robin': dict(zero=dict(round_robin_gradients=True)),
    'overlap': dict(zero=dict(overlap_comm=True)),
    'scattered': dict(zero=dict(contiguous_gradients=False)),
    'no scatter': dict(zero=dict(reduce_scatter=False)),
    'sub-groups': dict(
        zero=dict(sub_group_size=10, stage3_param_persistence_threshold=0)
    ),
    'groups': {},
    'forward': {},
    'unused': {},
}


class Fault(NamedTuple):
    site: str
    value: str


KINDS = [
    Kind(*parts)
    for parts in itertools.product(range(4), DTYPES, OPTIMIZERS, (1, 2))
]
FAULTS = [
    Fault('input', 'nan'),
    Fault('loss', 'nan'),
    Fault('grad', 'nan'),
    Fault('grad', 'inf'),
    Fault('grad', '1e30'),
    Fault('buffer', 'nan'),
]


def start():
    """Let DeepSpeed run on this CPU over gloo."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # The operations are there; DeepSpeed's list does not know it.
    cpu = type(get_accelerator())
    cpu.is_fp16_supported = lambda self: True
    cpu.supported_dtypes = lambda self: list(DTYPES.values())
    logging.getLogger('DeepSpeed').setLevel(logging.ERROR)
    # An exchange for inference, which a compiler would need a minute for.
    backend = importlib.import_module('deepspeed.comm.torch')
    backend.build_shm_op = lambda: None
    deepspeed.init_distributed('gloo', verbose=False)
    # MMEngine 0.10.7 registers optimizers that DeepSpeed 0.19 has no more, and
    # does so for each strategy.
    mmengine_strategy.register_deepspeed_optimizers = list
    # It tries to import another project for each engine, and Python 3.11 may
    # fail if an older engine is collected meanwhile.
    deepspeed.DeepSpeedEngine._supported_optims = lambda self: [
        torch.optim.Optimizer
    ]
    # Each engine collects garbage, through all that was imported.
    gc.freeze()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)
        # A frozen parameter that forward changes, as of a momentum encoder.
        self.teacher = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.variation, self.window = '', 0

    def forward(self, inputs):
        if self.variation == 'forward' and self.training:
            with torch.no_grad():
                self.teacher.add_(inputs.mean())
                self.head.weight.mul_(0.9)
        features = self.body(inputs)
        if self.variation != 'unused' or self.window % 3:
            features = self.norm(features)
        return self.head(features.relu()).float()


def config_of(kind, is_guarded):
    # DeepSpeed alone ends a run at its lowest scale; the guard's does not
    # move, because gradients at another scale round otherwise.
    least = 2**SCALE_POWER if is_guarded else 1
    # Small buffers: those of ZeRO 3 are filled in each engine.
    zero = dict(
        stage=kind.stage, reduce_bucket_size=1000, allgather_bucket_size=1000
    )
    if kind.is_offloaded:
        zero['offload_optimizer'] = dict(device='cpu', pin_memory=False)
    varied = dict(VARIATIONS.get(kind.variation, {}))
    zero.update(varied.pop('zero', {}))
    config = dict(
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=kind.accumulation,
        gradient_clipping=kind.clip,
        zero_optimization=zero,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        steps_per_print=10**9,
        **varied,
    )
    if kind.precision == 'bf16':
        config['bf16'] = dict(enabled=True)
    if kind.precision == 'fp16':
        config['fp16'] = dict(
            enabled=True,
            initial_scale_power=SCALE_POWER,
            min_loss_scale=least,
            hysteresis=1,
        )
    return config


def build(kind, is_guarded, net=None, **guard):
    """Return a wrapper with its engine."""
    import deepspeed

    torch.manual_seed(0)
    net = net or Net()
    net.variation = kind.variation
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [dict(params=trained)]
    if kind.variation == 'groups':
        groups = [dict(params=trained[:3]), dict(params=trained[3:], lr=0.02)]
    optimizer = OPTIMIZERS[kind.optimizer](groups)
    config = config_of(kind, is_guarded)
    if is_guarded:
        # Each overflow an anomaly: a scale that moves rounds otherwise.
        guard = dict(dict(proven_after=0), **guard)
        wrapper = NanGuardDeepSpeedOptimWrapper(optimizer, guard=guard)
    else:
        wrapper = DeepSpeedOptimWrapper(optimizer)
    engine, wrapper.optimizer, *_ = deepspeed.initialize(
        model=net,
        optimizer=optimizer,
        config=config,
        # DeepSpeed's own scheduler, which waits for the step.
        lr_scheduler=lambda optimizer: Rate(optimizer),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            for key in ('running_mean', 'running_var'):
                buffer = getattr(module, key)
                setattr(module, key, buffer.to(DTYPES[kind.precision]))
    wrapper.model = MMDeepSpeedEngineWrapper(model=engine)
    return wrapper


class Rate:
    """A scheduler as DeepSpeed expects it: step, get_last_lr, state_dict."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0

    def step(self):
        self.count += 1
        for group in self.optimizer.param_groups:
            group['lr'] *= 0.95

    def get_last_lr(self):
        return [group['lr'] for group in self.optimizer.param_groups]

    def state_dict(self):
        return dict(count=self.count)

    def load_state_dict(self, state):
        self.count = state['count']


def run(kind, fault=None, leave_out=(), is_guarded=True, struck=1):
    """Train; return the wrapper and the reported events. Collective."""
    wrapper = build(kind, is_guarded)
    if is_guarded:
        wrapper.guard.attach(object())
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(1 + rank)
    for window in range(1, NUM_WINDOWS + 1):
        for micro_batch in range(kind.accumulation):
            inputs = torch.randn(4, 4, generator=generator)
            if window in leave_out:
                continue
            is_struck = (
                fault is not None
                and rank == struck
                and window in STRUCK
                and micro_batch == kind.accumulation - 1
            )
            wrapper.model.model.module.window = window
            train_step(kind, wrapper, inputs, fault if is_struck else None)
    events = wrapper.guard.take_events() if is_guarded else []
    return wrapper, events


def train_step(kind, wrapper, inputs, fault=None):
    site, value = fault or (None, '0')
    engine = wrapper.model.model
    if site == 'input':
        inputs[0, 0] = float(value)
    net = engine.module
    logits = wrapper.model.model(inputs.to(DTYPES[kind.precision]))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 1]))
    if site == 'loss':
        loss = loss + (float(value) - loss.detach())
    wrapper.backward(loss)
    with torch.no_grad():
        if site == 'grad':
            strike_gradient(engine, float(value))
        elif site == 'buffer':
            net.norm.running_var[0] = float(value)
    wrapper.step()


def strike_gradient(engine, value):
    """Set one element of what DeepSpeed steps by on this rank."""
    from mmnanguard.optim.deepspeed.engine_places import find_places

    places = find_places(engine.optimizer, engine.module)
    gradients = places.gradients()
    if gradients:
        gradients[0][1].view(-1)[0] = value
    # DeepSpeed looks at gradients as they come in, which this one did not.
    if getattr(engine.optimizer, 'cpu_offload', False):
        engine.optimizer.local_overflow = value != value or abs(value) > 1e38


def everything(wrapper):
    """Return what a run keeps on this rank, by name."""
    from mmnanguard.optim.deepspeed.engine_places import find_places

    engine = wrapper.model.model
    places = find_places(engine.optimizer, engine.module)
    kept = {}
    # With ZeRO 3, parameters hold nothing of their own between passes.
    kept.update(engine.module.named_buffers())
    if engine.zero_optimization_stage() < 3:
        kept.update(engine.module.named_parameters())
    for index, tensor in enumerate(places.masters() + places.copies()):
        slices = places.slices().get(id(tensor))
        kept[f'{index} weight'] = without_padding(tensor, slices)
        state = places.inner.state.get(tensor, {})
        for key, value in state.items():
            value = torch.as_tensor(0 if value is None else value)
            if value.dim() and slices is not None:
                value = without_padding(value, slices)
            kept[f'{index} {key}'] = value
    for key, value in places.count().items():
        kept[key] = torch.tensor(float(-1 if value is None else value))
    kept['scheduler'] = torch.as_tensor(
        getattr(engine.lr_scheduler, 'count', 0)
    )
    lr = places.inner.param_groups[0]['lr']
    kept['lr'] = torch.as_tensor(lr)
    return {key: value.detach().clone() for key, value in kept.items()}


def without_padding(tensor, slices):
    """Return a tensor without what nobody has written to."""
    if slices is None:
        return tensor
    flat = tensor.detach().view(-1)
    parts = [flat.narrow(0, start, size) for _, start, size in slices]
    return torch.cat(parts)


def differing(left, right):
    """Return the names of tensors that are not equal bit for bit."""
    return [
        name
        for name, tensor in left.items()
        if tensor.shape != right[name].shape
        or not torch.equal(bits(tensor), bits(right[name]))
    ]


def bits(tensor):
    return tensor.flatten().contiguous().view(torch.uint8)


@functools.lru_cache(maxsize=None)
def oracle(kind, leave_out=STRUCK):
    """Return what DeepSpeed alone keeps without the struck windows."""
    return everything(run(kind, leave_out=leave_out, is_guarded=False)[0])
