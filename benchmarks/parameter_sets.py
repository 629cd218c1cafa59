"""The tensors of well-known models, which only optimizers can use."""

import torch
from torch import nn


def resnet50(has_buffers):
    """Return the layers of ResNet-50, with or without running statistics."""

    def conv(inputs, outputs, size):
        norm = nn.BatchNorm2d(outputs, track_running_stats=has_buffers)
        return [nn.Conv2d(inputs, outputs, size, bias=False), norm]

    layers, inputs = conv(3, 64, 7), 64
    for width, num_blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        layers += conv(inputs, 4 * width, 1)
        for _ in range(num_blocks):
            layers += conv(inputs, width, 1) + conv(width, width, 3)
            layers += conv(width, 4 * width, 1)
            inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(inputs, 1000))


def transformer_block(dim):
    """Return the layers of a transformer block."""
    return [
        nn.LayerNorm(dim),
        nn.Linear(dim, 3 * dim),
        nn.Linear(dim, dim),
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim),
        nn.Linear(4 * dim, dim),
    ]


def table(*shape):
    """Return a layer with a single parameter of this shape."""
    return nn.ParameterList([torch.zeros(shape)])


def vit_b():
    """Return the layers of ViT-B on 16 x 16 patches of 224 x 224 pixels."""
    dim = 768
    layers = [nn.Conv2d(3, dim, 16), table(1, 1, dim), table(1, 197, dim)]
    for _ in range(12):
        layers += transformer_block(dim)
    return nn.Sequential(*layers, nn.LayerNorm(dim), nn.Linear(dim, 1000))


def swin_t():
    """Return the layers of Swin-T with windows of 7 x 7."""
    layers, dim = [nn.Conv2d(3, 96, 4), nn.LayerNorm(96)], 96
    for stage, (depth, num_heads) in enumerate(
        ((2, 3), (2, 6), (6, 12), (2, 24))
    ):
        if stage:
            merge = nn.Linear(4 * dim, 2 * dim, bias=False)
            layers += [nn.LayerNorm(4 * dim), merge]
            dim *= 2
        for _ in range(depth):
            bias = table(13 * 13, num_heads)
            bias.register_buffer('index', torch.zeros(49, 49).long())
            layers += [*transformer_block(dim), bias]
    return nn.Sequential(*layers, nn.LayerNorm(dim), nn.Linear(dim, 1000))


PARAMETER_SETS = {
    'resnet50': lambda: resnet50(has_buffers=True),
    'vit-b': vit_b,
    'swin-t': swin_t,
    '1000-small': lambda: nn.ParameterList(torch.zeros(1000, 256).unbind()),
    'resnet50-no-buffers': lambda: resnet50(has_buffers=False),
    'tiny': lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
}
