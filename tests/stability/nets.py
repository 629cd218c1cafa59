"""Small nets on scikit-learn's digits, and three of mmpretrain's."""

import torch
from mmengine.model import BaseModel
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

DIGITS = load_digits()
IMAGES = torch.tensor(DIGITS.data, dtype=torch.float32).view(-1, 1, 8, 8) / 16
LABELS = torch.tensor(DIGITS.target)


class Digits(Dataset):
    """Digits of one channel, enlarged to a size if it is given."""

    def __init__(self, size=None):
        self.images = IMAGES
        if size is not None:
            self.images = F.interpolate(IMAGES, size=size)

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return dict(inputs=self.images[index], label=LABELS[index])


class Classifier(BaseModel):
    """A net with a loss.

    Args:
        net: The net; its outputs have 10 numbers for each sample.
        loss: 'cross_entropy' or 'mse'.
        reward: Factor of a term that rewards large outputs, as a loss with a
            wrong sign does: the outputs grow slowly, without a bound.
        spoil: A function that is called with each loss, the outputs and the
            number of the iteration, from 0, and returns the loss.
    """

    def __init__(self, net, loss='cross_entropy', reward=0.0, spoil=None):
        super().__init__()
        self.net = net
        self.loss = loss
        self.reward = reward
        self.spoil = spoil
        self.num_iters = 0

    def forward(self, inputs, label, mode='tensor'):
        outputs = self.net(inputs)
        if mode != 'loss':
            return outputs
        outputs = outputs.float()
        if self.loss == 'mse':
            loss = F.mse_loss(outputs, F.one_hot(label, 10).float())
        else:
            loss = F.cross_entropy(outputs, label)
        if self.spoil is not None:
            loss = self.spoil(loss, outputs, self.num_iters)
        self.num_iters += 1
        return dict(loss=loss - self.reward * outputs.abs().mean())


class Residual(nn.Module):
    """The sum of an input and of what a branch makes of it."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def mlp(depth=4, width=64, has_norm=False, activation=nn.GELU):
    blocks = []
    for _ in range(depth):
        norm = [nn.LayerNorm(width)] * has_norm
        blocks.append(
            Residual(
                nn.Sequential(
                    *norm,
                    nn.Linear(width, 2 * width),
                    activation(),
                    nn.Linear(2 * width, width),
                )
            )
        )
    stem = [nn.Flatten(), nn.Linear(64, width)]
    return nn.Sequential(*stem, *blocks, nn.Linear(width, 10))


def cnn(width=16, has_norm=True):
    layers = []
    for channels in (1, width):
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] * has_norm
        layers.append(nn.ReLU(inplace=True))
    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(4 * width, 10))


class BasicBlock(nn.Module):
    """A residual block of two convolutions, which works in place."""

    def __init__(self, width, has_norm):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width) if has_norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(width) if has_norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet(width=16, depth=3, has_norm=True):
    blocks = [BasicBlock(width, has_norm) for _ in range(depth)]
    stem = nn.Conv2d(1, width, 3, padding=1)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(stem, *blocks, *pool, nn.Linear(width, 10))


class Attention(nn.Module):
    """Self-attention, by softmax or fused."""

    def __init__(self, width, num_heads, is_fused):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.num_heads = num_heads
        self.is_fused = is_fused

    def forward(self, x):
        batch, length, width = x.shape
        shape = (batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        if self.is_fused:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            out = logits.softmax(-1) @ value
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    """Attention and MLP, with norms before or after them."""

    def __init__(self, width, is_pre_norm, is_fused):
        super().__init__()
        self.attn = Attention(width, 4, is_fused)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.is_pre_norm = is_pre_norm

    def forward(self, x):
        if self.is_pre_norm:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class ViT(nn.Module):
    """A small vision transformer on patches of 2 x 2 pixels."""

    def __init__(self, width=32, depth=3, is_pre_norm=True, is_fused=False):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(
            *[
                TransformerBlock(width, is_pre_norm, is_fused)
                for _ in range(depth)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class OfMmpretrain(nn.Module):
    """A backbone of mmpretrain with a linear head, for images of 32 x 32.

    Args:
        config: The config of the backbone.
        width: Number of channels of its last output.
    """

    def __init__(self, config, width):
        super().__init__()
        from mmpretrain.models import build_backbone

        self.backbone = build_backbone(config)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.backbone(x.expand(-1, 3, -1, -1))[-1]
        if x.dim() == 4:
            x = x.mean((2, 3))
        return self.head(x)


def mm_resnet():
    return OfMmpretrain(
        dict(
            type='mmpretrain.ResNet_CIFAR',
            depth=18,
            base_channels=16,
            stem_channels=16,
        ),
        128,
    )


def mm_vit():
    arch = dict(
        embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256
    )
    return OfMmpretrain(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=arch,
            img_size=32,
            patch_size=8,
            drop_path_rate=0.1,
        ),
        64,
    )


def mm_swin():
    arch = dict(embed_dims=32, depths=[2, 2], num_heads=[2, 4])
    return OfMmpretrain(
        dict(
            type='mmpretrain.SwinTransformer',
            arch=arch,
            img_size=32,
            patch_size=4,
            window_size=4,
            out_indices=(1,),
        ),
        64,
    )
