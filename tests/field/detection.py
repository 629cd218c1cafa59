"""Reports from object detection."""

import torch
from torch import nn
from torch.nn import functional as F

from .tasks import Classify, Regress


class DeepBoxHead(Regress):
    """A deep head without norm layers, as of a cascade."""

    iters = 150

    def network(self):
        layers = []
        for _ in range(6):
            layers += [nn.Linear(16, 16), nn.ReLU()]
        return nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, 4))

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['target'] *= 10
        return sample

    def loss(self, net, batch):
        return (net(batch.inputs) - batch.target).square().sum(1).mean()


class RateOfEightGpus(DeepBoxHead):
    """The learning rate of a config for eight GPUs on one GPU.

    The losses grow from the first iteration until they are Inf. A lower rate
    or clipping cures it, and neither samples nor divisions are to blame.
    """

    source = 'open-mmlab/mmdetection#3446'
    optimizer = dict(type='SGD', lr=0.5, momentum=0.9)
    must_train = False
    causes = ('loss_nonfinite', 'norm_overflow', 'grad_nonfinite')
    says = ('learning rate', 'clip_grad')
    never_says = (
        'no clipping can help',
        'look at the samples',
        r'next: .*divisions?, log',
    )


class NoWarmUp(DeepBoxHead):
    """A schedule with too short a warm-up: the first updates explode."""

    source = 'facebookresearch/maskrcnn-benchmark#841'
    optimizer = dict(type='SGD', lr=0.12, momentum=0.9)
    schedule = [
        dict(type='MultiStepLR', by_epoch=False, milestones=[50], gamma=0.1)
    ]
    must_train = False
    causes = ('loss_nonfinite', 'norm_overflow', 'grad_nonfinite')
    says = ('learning rate', 'warm-?up')
    never_says = ('no clipping can help', 'remove or repair')


class DetectoRSOnOneGpu(Classify):
    """Deep heads at a rate of 0.02 and losses that begin far too large."""

    source = 'open-mmlab/mmdetection#4274'
    iters = 150
    optimizer = dict(type='SGD', lr=0.02, momentum=0.9)
    must_train = False
    causes = ('loss_nonfinite', 'norm_overflow', 'grad_nonfinite')
    says = ('learning rate|clip',)
    never_says = ('no clipping can help', 'remove or repair')

    def network(self):
        layers = []
        for _ in range(8):
            layers += [nn.Linear(16, 16), nn.ReLU()]
        return nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, 3))

    def loss(self, net, batch):
        return super().loss(net, batch) * 1e6


class NoPositives(Regress):
    """Batches without objects: the loss is divided by zero positives."""

    source = 'ultralytics/ultralytics#490'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|/ num_positives'
    says_in_full = ('0/0|division|divide|dividing|divisions',)
    never_says = ('learning rate is too|lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        # A batch of background images.
        sample['is_object'] = torch.tensor(float(index // 4 % 8 != 3))
        return sample

    def is_good(self, index):
        return index // 4 % 8 != 3

    def loss(self, net, batch):
        error = (net(batch.inputs) - batch.target).abs().sum(1)
        num_positives = batch.is_object.sum()
        return (error * batch.is_object).sum() / num_positives


class ZeroWidthBox(Regress):
    """A ground truth box of width 0, which the encoder takes the log of."""

    source = 'amdegroot/ssd.pytorch#116'
    causes = ('loss_nonfinite',)
    culprit = r'021\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        width = torch.rand(1, generator=generator) + 0.5
        if index == 21:
            width = torch.zeros(1)
        sample['width'] = width
        return sample

    def is_good(self, index):
        return index != 21

    def loss(self, net, batch):
        boxes = net(batch.inputs)
        loss_width = F.l1_loss(boxes[:, :1], batch.width.log())
        loss_box = F.smooth_l1_loss(boxes[:, 1:], batch.target[:, 1:])
        return dict(loss_box=loss_box, loss_width=loss_width)


class UnionOfEmptyBoxes(Regress):
    """The IoU of two boxes without area: 0/0 once the prediction is clamped.

    One sample of the data has a box without area.
    """

    source = 'Sompote/SAM3_LoRA#34'
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'aten\.div|008\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Linear(8, 2)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        size = sample['inputs'][:2].abs() + 0.5
        if index == 8:
            size = torch.zeros(2)
            sample['inputs'] = torch.full((8,), -9.0)
        return dict(inputs=sample['inputs'], size=size)

    def is_good(self, index):
        return index != 8

    def loss(self, net, batch):
        size = (net(batch.inputs) + 1).clamp(min=0) * batch.size.sign()
        inter = torch.minimum(size, batch.size).prod(1)
        union = size.prod(1) + batch.size.prod(1) - inter
        return (1 - inter / union).mean() + (size - batch.size).abs().mean()


class EnclosingCircle(Regress):
    """The diagonal of an enclosing box: sqrt has no gradient at 0.

    The loss is finite; a sample whose boxes coincide exactly spoils the
    gradients.
    """

    source = 'lilanxiao/Rotated_IoU#20'
    causes = ('grad_nonfinite',)
    culprit = r'sqrt'
    says_in_full = ('sqrt',)
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_same'] = torch.tensor(float(index != 13))
        return sample

    def is_good(self, index):
        return index != 13

    def loss(self, net, batch):
        error = (net(batch.inputs) - batch.target).square().sum(1)
        return (error * batch.is_same).sqrt().mean()


class GaussianDistance(EnclosingCircle):
    """The same pole under a static float16 loss scale, with tiny gradients.

    Lowering the scale does not help, and flushes the gradients to zero.
    """

    source = 'open-mmlab/mmrotate#205'
    iters = 400
    precision = 'float16'
    wrapper = dict(loss_scale=4096.0)
    optimizer = dict(type='AdamW', lr=3e-3)
    never_says = ('lower the learning rate', 'lower optim_wrapper.loss_scale')

    def loss(self, net, batch):
        error = (net(batch.inputs).float() - batch.target).square().sum(1)
        return (error * batch.is_same).sqrt().mean() * 3e-8


class HeatmapLogOfZero(Classify):
    """A focal loss without a clamp: log(0) when a sigmoid saturates."""

    source = 'xingyizhou/CenterNet#121'
    iters = 150
    num_samples = 64
    optimizer = dict(type='SGD', lr=0.05)
    causes = ('loss_nonfinite',)
    culprit = r'aten\.log'
    never_says = ('lower the learning rate', 'overflow in float32')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 37:  # a saturated input
            sample['inputs'] = torch.full((8,), 60.0)
        return sample

    def network(self):
        return nn.Linear(8, 3)

    def is_good(self, index):
        return index != 37

    def loss(self, net, batch):
        prob = net(batch.inputs).mul(4).sigmoid()
        target = F.one_hot(batch.label, 3)
        positive = (1 - prob) ** 2 * prob.log() * target
        negative = prob**2 * (1 - prob).log() * (1 - target)
        return -(positive + negative).sum(1).mean()


class OnlyIgnoredLabels(Classify):
    """Filtered classes: most batches have no label, and a loss of 0/0.

    All gradients of such a batch are zero, so that the run without a guard
    learns from the other batches.
    """

    source = 'ultralytics/ultralytics#25096'
    iters = 300
    batch_size = 1
    num_samples = 100
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'rolled back')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index % 10 < 6:
            sample['label'] = torch.tensor(255)
        return sample

    def is_good(self, index):
        return index % 10 >= 6

    def loss(self, net, batch):
        return F.cross_entropy(
            net(batch.inputs), batch.label, ignore_index=255
        )


class NoMasksInBatch(Regress):
    """The mean of an empty selection is NaN, with gradients of zero."""

    source = 'open-mmlab/mmdetection#5911'
    iters = 300
    # At a higher rate, the noise of the last batches decides on the end.
    optimizer = dict(type='SGD', lr=0.02)
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'rolled back')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['has_mask'] = torch.tensor(index // 4 % 5 != 2)
        return sample

    def is_good(self, index):
        return index // 4 % 5 != 2

    def loss(self, net, batch):
        boxes = net(batch.inputs)
        loss_box = F.l1_loss(boxes[:, :2], batch.target[:, :2])
        kept = batch.has_mask
        error = boxes[kept, 2:] - batch.target[kept, 2:]
        return dict(loss_box=loss_box, loss_mask=error.abs().mean())


class CorruptImage(Classify):
    """A file that decodes to NaN. BatchNorm keeps it for good."""

    source = 'prs-eth/Marigold#111'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'030\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
        )

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 30:
            sample['inputs'][3] = float('nan')
        return sample

    def is_good(self, index):
        return index != 30


class MatcherRefusesNan(Classify):
    """Hungarian matching raises an error once the weights are NaN."""

    source = 'roboflow/rf-detr#431'
    causes = ('loss_nonfinite',)
    culprit = r'045\.jpg|aten\.div'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['area'] = torch.tensor(float(index != 45))
        return sample

    def is_good(self, index):
        return index != 45

    def loss(self, net, batch):
        logits = net(batch.inputs)
        if not logits.isfinite().all():
            raise ValueError('matrix contains invalid numeric entries')
        error = F.cross_entropy(logits, batch.label, reduction='none')
        return (error * batch.area / batch.area).mean()


class StaticScaleTooLarge(Classify):
    """A static loss scale that overflows float16 in each iteration.

    The run without a guard skips every update and learns nothing.
    """

    source = 'open-mmlab/mmdetection#3690'
    precision = 'float16'
    wrapper = dict(loss_scale=2.0**20)
    causes = ()
    says = ('loss.?scale',)
    never_says = ('lower the learning rate', 'remove or repair')


class ExponentialOfSize(Regress):
    """Exponentials of unbounded predictions: the size of a box overflows."""

    source = 'megvii-model/YOLOF#51'
    iters = 150
    optimizer = dict(type='SGD', lr=0.02)
    causes = ('loss_nonfinite', 'grad_nonfinite', 'norm_overflow')
    culprit = r'aten\.exp|050\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Linear(8, 4)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['target'] = sample['target'].abs()
        if index == 50:  # far outside of the other data
            sample['inputs'] = torch.full((8,), 2000.0)
        return sample

    def is_good(self, index):
        return index != 50

    def loss(self, net, batch):
        sizes = net(batch.inputs).exp()
        return F.smooth_l1_loss(sizes, batch.target)
