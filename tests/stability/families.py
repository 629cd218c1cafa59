"""The runs of the score card: healthy ones, and families that go bad.

Each family has runs for setting the limits ('seen') and others, with other
nets, sizes and seeds, that were only measured ('unseen').
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict

import torch
from torch import nn

from . import nets

HEALTHY = 'healthy'
UNPREDICTABLE = 'not predictable'


@dataclass(frozen=True)
class Family:
    """A run of the score card.

    Attributes:
        kind: The family; ``HEALTHY`` and ``UNPREDICTABLE`` are apart.
        net: Builds the net.
        optimizer: The optimizer's config.
        is_seen: Whether it belongs to the runs for setting the limits.
        setup: Keywords of :func:`runs.run`.
    """

    kind: str
    net: Callable[[], nn.Module]
    optimizer: Dict[str, Any]
    is_seen: bool = True
    setup: Dict[str, Any] = field(default_factory=dict)


def sgd(lr, **options):
    return dict(type='SGD', lr=lr, momentum=0.9, **options)


def adam(lr, **options):
    return dict(type='AdamW', lr=lr, **options)


def warm_up(num_iters):
    return [
        dict(
            type='LinearLR',
            start_factor=0.01,
            by_epoch=False,
            begin=0,
            end=num_iters,
        )
    ]


def ramp(factor, num_iters):
    """Return a schedule that multiplies the learning rate by a factor."""
    return [
        dict(
            type='LinearLR',
            start_factor=1 / factor,
            end_factor=1.0,
            by_epoch=False,
            begin=0,
            end=num_iters,
        )
    ]


def sharpen(net):
    """Make queries and keys of all attention large, as in a late training."""
    for module in net.modules():
        if isinstance(module, nets.Attention):
            with torch.no_grad():
                module.qkv.weight.mul_(2.0)


def poison(loss, outputs, iteration):
    return loss * float('nan') if iteration == 150 else loss


def root(loss, outputs, iteration):
    return loss + (outputs.mean() - outputs.mean().detach()).sqrt()


FP16 = dict(dtype='float16')
BF16 = dict(dtype='bfloat16')
VIT = partial(nets.ViT)
FUSED = partial(nets.ViT, is_fused=True)
POST = partial(nets.ViT, is_pre_norm=False)
DEEP = partial(nets.ViT, depth=6, width=48)
BARE_CNN = partial(nets.cnn, has_norm=False)
BARE_RESNET = partial(nets.resnet, has_norm=False)
WIDE = partial(nets.mlp, width=128, depth=3)
NORMED = partial(nets.mlp, has_norm=True)


def healthy(net, optimizer, is_seen=True, **setup):
    return Family(HEALTHY, net, optimizer, is_seen, setup)


def bad(kind, net, optimizer, is_seen=True, **setup):
    return Family(kind, net, optimizer, is_seen, setup)


LR = 'learning rate too high'
RAMP = 'learning rate that rises'
GROWTH = 'float16 outputs that grow'
LOGITS = 'attention logits'
SCALE = 'loss scale too small'

FAMILIES = {
    # Healthy runs
    'cnn': healthy(nets.cnn, sgd(0.05)),
    'cnn-decay': healthy(nets.cnn, sgd(0.02, weight_decay=5e-4)),
    'cnn-fp16': healthy(nets.cnn, sgd(0.05), **FP16),
    'cnn-bf16': healthy(nets.cnn, sgd(0.05), **BF16),
    'cnn-bare': healthy(BARE_CNN, sgd(0.02)),
    'cnn-adam': healthy(nets.cnn, adam(1e-3)),
    'resnet': healthy(nets.resnet, sgd(0.1)),
    'resnet-fp16': healthy(nets.resnet, sgd(0.05), **FP16),
    'resnet-bare': healthy(BARE_RESNET, sgd(0.03)),
    'mlp': healthy(nets.mlp, adam(1e-3)),
    'mlp-fp16': healthy(nets.mlp, adam(5e-4), **FP16),
    'mlp-mse': healthy(nets.mlp, adam(5e-4), loss='mse'),
    'vit': healthy(VIT, adam(1e-3)),
    'vit-fp16': healthy(VIT, adam(1e-3), **FP16),
    'vit-fused': healthy(FUSED, adam(5e-4)),
    'vit-warm-up': healthy(VIT, adam(2e-3), schedule=warm_up(50)),
    'vit-long': healthy(VIT, adam(5e-4), num_iters=1000),
    'mlp-static-scale': healthy(
        NORMED, adam(5e-4), dtype='float16', loss_scale=512.0
    ),
    'mm-resnet': healthy(nets.mm_resnet, sgd(0.1), size=32, num_iters=150),
    'mm-vit': healthy(
        nets.mm_vit, adam(1e-3), size=32, num_iters=200, schedule=warm_up(50)
    ),
    'mm-swin': healthy(
        nets.mm_swin, adam(1e-3), size=32, num_iters=150, schedule=warm_up(50)
    ),
    'other-cnn': healthy(
        partial(nets.cnn, width=24), sgd(0.03), False, seed=5
    ),
    'other-cnn-fp16': healthy(
        partial(nets.cnn, width=8), sgd(0.1), False, seed=6, **FP16
    ),
    'other-cnn-nesterov': healthy(
        nets.cnn, sgd(0.03, nesterov=True), False, seed=7
    ),
    'other-resnet': healthy(
        partial(nets.resnet, depth=5), sgd(0.05), False, seed=8
    ),
    'other-resnet-adam': healthy(nets.resnet, adam(2e-3), False, seed=9),
    'other-mlp': healthy(WIDE, adam(5e-4), False, seed=10),
    'other-mlp-relu': healthy(
        partial(nets.mlp, activation=nn.ReLU), sgd(0.01), False, seed=11
    ),
    'other-mlp-fp16': healthy(NORMED, adam(1e-3), False, seed=12, **FP16),
    'other-mlp-mse': healthy(
        WIDE, adam(3e-4), False, seed=13, loss='mse', **FP16
    ),
    'other-vit-deep': healthy(DEEP, adam(5e-4), False, seed=14),
    'other-vit-post': healthy(
        POST, adam(5e-4), False, seed=15, schedule=warm_up(100)
    ),
    'other-vit-accumulated': healthy(
        FUSED, adam(1e-3), False, seed=16, accumulative_counts=2
    ),
    'other-vit-clipped': healthy(
        VIT, adam(2e-3), False, seed=17, clip_grad=dict(max_norm=1.0)
    ),
    'other-long': healthy(NORMED, adam(3e-4), False, seed=18, num_iters=1500),
    'other-mm-resnet': healthy(
        nets.mm_resnet,
        sgd(0.05),
        False,
        size=32,
        num_iters=150,
        seed=19,
        **BF16,
    ),
    'other-mm-vit': healthy(
        nets.mm_vit,
        adam(5e-4, weight_decay=0.3),
        False,
        size=32,
        num_iters=200,
        seed=20,
        schedule=warm_up(50),
    ),
    'other-mm-swin': healthy(
        nets.mm_swin,
        adam(5e-4),
        False,
        size=32,
        num_iters=150,
        seed=21,
        schedule=warm_up(50),
    ),
    # A learning rate that is too high
    'lr-cnn': bad(LR, BARE_CNN, sgd(1.0)),
    'lr-cnn-norm': bad(LR, nets.cnn, sgd(20.0)),
    'lr-resnet': bad(LR, BARE_RESNET, sgd(0.3)),
    'lr-mlp-adam': bad(LR, nets.mlp, adam(0.1)),
    'lr-vit': bad(LR, VIT, sgd(3.0)),
    'lr-vit-adam': bad(LR, VIT, adam(0.1)),
    'lr-vit-post': bad(LR, POST, adam(0.02)),
    'lr-mm-resnet': bad(
        LR, nets.mm_resnet, sgd(100.0), size=32, num_iters=150
    ),
    'lr-mm-vit': bad(LR, nets.mm_vit, adam(0.1), size=32, num_iters=200),
    'other-lr-cnn': bad(
        LR, partial(nets.cnn, width=24, has_norm=False), sgd(2.0), False
    ),
    'other-lr-resnet': bad(
        LR, partial(nets.resnet, depth=5), sgd(30.0), False, seed=3
    ),
    'other-lr-mlp': bad(LR, WIDE, sgd(1.0), False, seed=4),
    'other-lr-mlp-adam': bad(LR, WIDE, adam(0.2), False, seed=5),
    'other-lr-vit-deep': bad(LR, DEEP, adam(0.2), False, seed=6),
    'other-lr-mm-swin': bad(
        LR, nets.mm_swin, adam(0.1), False, size=32, num_iters=150, seed=7
    ),
    'lr-mlp': bad(LR, nets.mlp, sgd(0.2)),
    'other-lr-vit': bad(LR, DEEP, sgd(1.0), False, seed=17),
    'other-lr-cnn-adam': bad(
        LR,
        partial(nets.cnn, width=24, has_norm=False),
        adam(0.3),
        False,
        seed=18,
    ),
    # A learning rate that rises until it is too high
    'ramp-cnn': bad(
        RAMP, BARE_CNN, sgd(2.0), schedule=ramp(100, 400), num_iters=500
    ),
    'ramp-mlp': bad(
        RAMP, nets.mlp, sgd(1.0), schedule=ramp(100, 400), num_iters=500
    ),
    'ramp-vit': bad(
        RAMP, VIT, adam(0.4), schedule=ramp(100, 400), num_iters=500
    ),
    'other-ramp-resnet': bad(
        RAMP,
        BARE_RESNET,
        sgd(1.0),
        False,
        schedule=ramp(100, 300),
        num_iters=400,
        seed=8,
    ),
    'other-ramp-mlp': bad(
        RAMP,
        WIDE,
        adam(0.1),
        False,
        schedule=ramp(200, 400),
        num_iters=500,
        seed=9,
    ),
    'ramp-resnet': bad(
        RAMP,
        BARE_RESNET,
        adam(0.3),
        schedule=ramp(300, 400),
        num_iters=500,
        seed=19,
    ),
    'other-ramp-vit': bad(
        RAMP,
        DEEP,
        sgd(3.0),
        False,
        schedule=ramp(300, 400),
        num_iters=500,
        seed=20,
    ),
    # Outputs that grow until they overflow float16
    'growth-mlp': bad(GROWTH, nets.mlp, adam(5e-4), reward=0.05, **FP16),
    'growth-mlp-fast': bad(GROWTH, nets.mlp, adam(1e-3), reward=0.1, **FP16),
    'growth-mlp-slow': bad(
        GROWTH, nets.mlp, adam(2e-4), reward=0.1, num_iters=1200, **FP16
    ),
    'growth-resnet': bad(
        GROWTH, BARE_RESNET, adam(2e-3), reward=0.1, num_iters=600, **FP16
    ),
    'other-growth-mlp': bad(
        GROWTH, WIDE, adam(3e-4), False, reward=0.08, seed=10, **FP16
    ),
    'other-growth-deep': bad(
        GROWTH,
        partial(nets.mlp, depth=8),
        adam(3e-4),
        False,
        reward=0.1,
        seed=11,
        **FP16,
    ),
    'other-growth-cnn': bad(
        GROWTH,
        BARE_CNN,
        adam(3e-3),
        False,
        reward=0.2,
        num_iters=800,
        seed=12,
        **FP16,
    ),
    'growth-mlp-relu': bad(
        GROWTH,
        partial(nets.mlp, activation=nn.ReLU),
        adam(5e-4),
        reward=0.1,
        num_iters=800,
        **FP16,
    ),
    'growth-resnet-fast': bad(
        GROWTH, BARE_RESNET, adam(4e-3), reward=0.3, num_iters=600, **FP16
    ),
    'growth-mlp-normed': bad(
        GROWTH, NORMED, adam(1e-3), reward=0.1, num_iters=800, **FP16
    ),
    'other-growth-relu': bad(
        GROWTH,
        partial(nets.mlp, width=128, depth=3, activation=nn.ReLU),
        adam(3e-4),
        False,
        reward=0.2,
        num_iters=800,
        seed=21,
        **FP16,
    ),
    'other-growth-resnet': bad(
        GROWTH,
        partial(nets.resnet, depth=5, has_norm=False),
        adam(1e-3),
        False,
        reward=0.1,
        num_iters=800,
        seed=22,
        **FP16,
    ),
    'other-growth-slow': bad(
        GROWTH,
        WIDE,
        adam(1e-4),
        False,
        reward=0.2,
        num_iters=1200,
        seed=23,
        **FP16,
    ),
    # Attention that becomes one-hot
    'logits-vit': bad(LOGITS, VIT, adam(0.2), prepare=sharpen),
    'logits-fused': bad(LOGITS, FUSED, adam(0.1)),
    'other-logits': bad(
        LOGITS, DEEP, adam(0.1), False, prepare=sharpen, seed=13
    ),
    'other-logits-fused': bad(
        LOGITS,
        partial(nets.ViT, is_fused=True, depth=5),
        adam(0.1),
        False,
        seed=14,
    ),
    # Gradients that become 0 in float16
    'scale-cnn': bad(
        SCALE, nets.cnn, sgd(0.05), dtype='float16', loss_scale=2.0**-22
    ),
    'scale-mlp': bad(
        SCALE, nets.mlp, adam(1e-3), dtype='float16', loss_scale=2.0**-18
    ),
    'other-scale-vit': bad(
        SCALE,
        VIT,
        adam(1e-3),
        False,
        dtype='float16',
        loss_scale=2.0**-16,
        seed=15,
    ),
    'other-scale-resnet': bad(
        SCALE,
        nets.resnet,
        sgd(0.05),
        False,
        dtype='float16',
        loss_scale=2.0**-15,
        seed=16,
    ),
    # What comes without a sign
    'batch-nan': Family(
        UNPREDICTABLE, nets.cnn, sgd(0.05), setup=dict(spoil=poison)
    ),
    'root-of-zero': Family(
        UNPREDICTABLE, nets.mlp, adam(1e-3), setup=dict(spoil=root)
    ),
}
