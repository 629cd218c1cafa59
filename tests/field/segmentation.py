"""Reports from segmentation and depth estimation."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class Pixels(Scenario):
    """Tell foreground from background in images of 6 x 6 pixels."""

    optimizer = dict(type='SGD', lr=0.5)

    def network(self):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )

    def sample(self, index, generator):
        image = torch.randn(3, 6, 6, generator=generator)
        return dict(inputs=image, mask=(image[0] > image[1]).long())

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs), batch.mask)


class UnlabelledCrops(Pixels):
    """Random crops without a labelled pixel: a loss of 0/0.

    All gradients of such a batch are zero.
    """

    source = 'pytorch/pytorch#75181'
    batch_size = 1
    iters = 300
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'rolled back')

    def is_good(self, index):
        return index % 3 == 0

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['mask'][:] = 255
        return sample

    def loss(self, net, batch):
        logits = net(batch.inputs)
        return F.cross_entropy(logits, batch.mask, ignore_index=255)


class DiceOfEmptyMasks(Pixels):
    """A Dice loss without smoothing: 0/0 if nothing is predicted or true."""

    source = 'nasa/delta#115'
    batch_size = 2
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    never_says = ('lower the learning rate', 'float16')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        # Images without any object, which the net gets perfectly right.
        if not self.is_good(index):
            sample['inputs'] = torch.full((3, 6, 6), -40.0)
            sample['inputs'][1] = 40.0
            sample['mask'][:] = 0
        return sample

    def is_good(self, index):
        return index // 2 % 7 != 3

    def loss(self, net, batch):
        prob = net(batch.inputs).softmax(1)[:, 1]
        prob = prob * (prob > 1e-6)
        inter = (prob * batch.mask).sum()
        return 1 - 2 * inter / (prob.sum() + batch.mask.sum())


class DiceInHalf(Pixels):
    """Sums over an image overflow float16; float32 or bfloat16 cures it.

    The run without a guard skips every update.
    """

    source = 'ultralytics/ultralytics#24554'
    precision = 'float16'
    wrapper = dict(loss_scale='dynamic')
    must_train = False
    causes = ('loss_nonfinite',)
    culprit = 'overflow'
    says_in_full = ('bfloat16|float32',)
    never_says = ('lower the learning rate', 'remove or repair')

    def network(self):
        net = super().network()
        net.append(Scaled(3e3))
        return net

    def loss(self, net, batch):
        scores = net(batch.inputs)[:, 1]
        inter = (scores * scores * batch.mask).half().sum((1, 2))
        union = (scores * scores).half().sum((1, 2))
        return 1 - (inter / union).float().mean()


class Scaled(nn.Module):
    """A factor, as a normalization that was forgotten."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, inputs):
        return inputs * self.factor


class RateOfDecoder(Pixels):
    """AdamW in float16 with too high a rate: a static scale overflows."""

    source = 'open-mmlab/mmsegmentation#67'
    iters = 200
    precision = 'float16'
    optimizer = dict(type='AdamW', lr=0.5)
    wrapper = dict(loss_scale=512.0)
    must_train = False
    never_says = ('remove or repair',)

    def network(self):
        layers = []
        for _ in range(4):
            layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 2, 1)
        )


class InverseDepth(Regress):
    """Targets are the inverse of a depth, which is 0 where it is unknown."""

    source = 'ialhashim/DenseDepth#65'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'017\.jpg|aten\.(reciprocal|div)'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['depth'] = sample.pop('target').abs() + 1
        if index == 17:
            sample['depth'][1] = 0
        return sample

    def is_good(self, index):
        return index != 17

    def loss(self, net, batch):
        return (net(batch.inputs) - 3 / batch.depth).square().mean()


class BackgroundDepth(Regress):
    """Depth is NaN where a pixel shows no geometry, and nothing masks it."""

    source = 'apple/ml-hypersim#63'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'041\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 41:
            sample['target'][0] = float('nan')
        return sample

    def is_good(self, index):
        return index != 41


class MaskWithoutHeight(Regress):
    """A mask of one row has a height of y_max - y_min = 0, a divisor."""

    source = 'tensorflow/models#6392'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|011\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['height'] = torch.tensor(0.0 if index == 11 else 4.0)
        return sample

    def is_good(self, index):
        return index != 11

    def loss(self, net, batch):
        error = (net(batch.inputs) - batch.target).abs().mean(1)
        return (error * 4 / batch.height).mean()


class AllDepthsZero(Regress):
    """A scale-invariant log loss over an image without a valid depth."""

    source = 'isl-org/ZoeDepth#54'
    causes = ('loss_nonfinite',)
    culprit = r'022\.jpg|aten\.log'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['target'] = sample['target'].abs() + 0.1
        if index == 22:
            sample['target'][:] = 0
        return sample

    def is_good(self, index):
        return index != 22

    def loss(self, net, batch):
        depth = F.softplus(net(batch.inputs)) + 0.1
        error = depth.log() - batch.target.log()
        return (error.square().mean() - 0.5 * error.mean() ** 2).sqrt()


class VarianceBelowZero(Regress):
    """The variance as E[x^2] - E[x]^2 is negative by rounding: sqrt NaN."""

    source = 'mpariente/pytorch_stoi#7'
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'aten\.sqrt'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 40:  # a constant image
            sample['inputs'] = torch.full((8,), 7.1)
            sample['target'] = torch.ones(4)
        return sample

    def is_good(self, index):
        return index != 40

    def loss(self, net, batch):
        inputs = batch.inputs
        variance = inputs.square().mean(1) - inputs.mean(1).square() - 1e-5
        outputs = net(inputs) / variance.sqrt()[:, None]
        return F.smooth_l1_loss(outputs, batch.target)


class HeatmapInHalf(Classify):
    """A sigmoid in float16 rounds to 1, and bfloat16 does so even earlier."""

    source = 'blog.csdn.net/qq_31787603/article/details/112211279'
    precision = 'float16'
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'aten\.log'
    says_in_full = ('In float32 the update is finite', 'epsilon')
    never_says = ('set optim_wrapper.dtype', 'lower the learning rate')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index % 16 == 3:
            sample['inputs'] *= 40
        return sample

    def is_good(self, index):
        return index % 16 != 3

    def loss(self, net, batch):
        score = net(batch.inputs).sigmoid()
        label = F.one_hot(batch.label, 3).float()
        hit = label * (1 - score) ** 2 * score.log()
        miss = (1 - label) * score**2 * (1 - score).log()
        return -(hit + miss).mean()
