"""Whole classifiers to iterate: mmpretrain's, or the same layers from here."""

from importlib.util import find_spec

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F

NUM_CLASSES = 1000
HEAD = dict(
    num_classes=NUM_CLASSES, loss=dict(type='CrossEntropyLoss', loss_weight=1)
)
# The parts of mmpretrain's own configs.
PARTS = {
    'resnet50': dict(
        backbone=dict(type='ResNet', depth=50),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=2048, **HEAD),
    ),
    'vit-b': dict(
        backbone=dict(
            type='VisionTransformer', arch='b', img_size=224, patch_size=16
        ),
        head=dict(type='VisionTransformerClsHead', in_channels=768, **HEAD),
    ),
}
# Layers per stage and width of the first, and layers, width and heads.
RESNETS = {'resnet50': ((3, 4, 6, 3), 64), 'tiny-resnet': ((1, 1), 8)}
VITS = {'vit-b': (12, 768, 12), 'tiny-vit': (1, 32, 2)}


class Classifier(BaseModel):
    """A backbone, a linear head and the cross entropy of mmpretrain."""

    def __init__(self, backbone, num_features):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(num_features, NUM_CLASSES)

    def forward(self, inputs, data_samples, mode):
        """Return the loss of images of shape (N, 3, H, W)."""
        scores = self.head(self.backbone(inputs))
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=F.cross_entropy(scores, labels.to(scores.device)))


def conv(inputs, outputs, size=1, stride=1):
    """Return a convolution and its batch norm."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """The block of ResNet-50."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            conv(inputs, width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, stride),
            nn.ReLU(inplace=True),
            conv(width, 4 * width),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = conv(inputs, 4 * width, stride=stride)

    def forward(self, features):
        """Return features of shape (N, 4 * width, H / stride, W / stride)."""
        return F.relu(self.branch(features) + self.shortcut(features))


def resnet(depths, width):
    """Return a ResNet of bottlenecks."""
    layers = [conv(3, width, 7, 2), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            layers.append(Bottleneck(inputs, width * 2**stage, stride))
            inputs = 4 * width * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(nn.Sequential(*layers), inputs)


class ViT(nn.Module):
    """A vision transformer on patches of 16 x 16, with a class token."""

    def __init__(self, depth, dim, num_heads, size):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(torch.zeros(1, (size // 16) ** 2 + 1, dim))
        layer = nn.TransformerEncoderLayer(
            *(dim, num_heads, 4 * dim, 0.0, F.gelu),
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False
        )

    def forward(self, images):
        """Return the class tokens, of shape (N, dim)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        first = self.token.expand(len(tokens), -1, -1).to(tokens.dtype)
        tokens = torch.cat([first, tokens], 1) + self.places
        return self.layers(tokens)[:, 0]


def build_model(name, size):
    """Build a model for images of ``size`` pixels.

    Returns:
        The model, the type of its samples, and whose model it is.
    """
    source = 'stand-in'
    if name in PARTS and find_spec('mmpretrain'):
        try:
            return *mmpretrains(name), 'mmpretrain'
        except Exception as error:
            # Its imports depend on the versions of many other packages.
            source = f'stand-in (mmpretrain: {type(error).__name__})'
    if name in RESNETS:
        return resnet(*RESNETS[name]), BaseDataElement, source
    depth, dim, num_heads = VITS[name]
    vit = Classifier(ViT(depth, dim, num_heads, size), dim)
    return vit, BaseDataElement, source


def mmpretrains(name):
    """Return mmpretrain's model and the type of its samples."""
    from mmpretrain.models import ImageClassifier
    from mmpretrain.structures import DataSample
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return ImageClassifier(**PARTS[name]), DataSample


def make_batch(num_images, size, sample_type, device):
    """Return a batch of noise on the device."""
    samples = []
    for index in range(num_images):
        sample = sample_type()
        sample.gt_label = torch.tensor([index % NUM_CLASSES]).to(device)
        samples.append(sample)
    images = torch.randn(num_images, 3, size, size).to(device)
    return dict(inputs=images, data_samples=samples)
