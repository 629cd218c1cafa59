"""Reports whose cause is the optimizer, the schedule or a hook."""

import math

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.nn import functional as F

from .healthy import FrozenMaskParameter
from .tasks import Classify, Regress


class EpsilonOfZero(Classify):
    """Adam without epsilon divides by 0 where a gradient was always 0.

    The first step makes NaN of finite gradients.
    """

    source = 'kozistr/pytorch_optimizer#480'
    optimizer = dict(type='Adam', lr=1e-2, eps=0.0)
    must_train = False
    causes = ('step_nonfinite', 'step_spoiled_weights')
    culprit = 'Adam'
    says = ('eps',)
    never_says = (
        'outside any guarded update',
        'hooks, EMA',
        'remove or repair',
    )

    def network(self):
        net = super().network()
        net.insert(0, EmbeddedBias())
        return net


class EmbeddedBias(nn.Module):
    """An embedding of which some rows are never used."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(5, 8)

    def forward(self, inputs):
        return inputs + self.rows((inputs[:, 0] > 0).long())


class RateIsNan(Classify):
    """A schedule with a power of a negative base: the rate becomes NaN."""

    source = 'VainF/DeepLabV3Plus-Pytorch#59'
    must_train = False
    culprit = 'learning rate'
    causes = ('step_nonfinite', 'step_spoiled_weights')
    says = ('learning rate',)
    never_says = (
        'outside any guarded update',
        'hooks, EMA',
        'remove or repair',
        'lower the learning rate',
    )

    def hooks(self):
        return [PowerOfNegative()]


class PowerOfNegative(Hook):
    """A polynomial schedule that was given too few iterations."""

    priority = 'LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        left = 1 - runner.iter / 60
        factor = left**0.9 if left >= 0 else math.nan
        for group in runner.optim_wrapper.param_groups:
            group['lr'] = 0.1 * factor


class AverageOfNan(Classify):
    """An exponential average of weights takes one NaN for ever."""

    source = 'ultralytics/ultralytics#24986'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'035\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 35:
            sample['inputs'][1] = float('nan')
        return sample

    def is_good(self, index):
        return index != 35

    def hooks(self):
        from mmengine.hooks import EMAHook

        return [EMAHook(momentum=0.01)]


class ClipByNanNorm(Classify):
    """Clipping by a norm that is NaN makes every gradient NaN."""

    source = 'pytorch/pytorch#46849'
    wrapper = dict(clip_grad=dict(max_norm=1.0))
    causes = ('grad_nonfinite',)
    culprit = r'sqrt'
    never_says = ('lower the learning rate', 'clip_grad=')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_zero'] = torch.tensor(float(index != 3))
        return sample

    def is_good(self, index):
        return index != 3

    def loss(self, net, batch):
        logits = net(batch.inputs)
        size = (logits.square().sum(1) * batch.is_zero).sqrt().mean()
        loss_cls = F.cross_entropy(logits, batch.label)
        return dict(loss_cls=loss_cls, loss_size=1e-3 * size)


class OneBadMicroBatch(Classify):
    """One NaN among four accumulated batches spoils their sum."""

    source = 'NVIDIA-NeMo/Speech#11272'
    iters = 240
    wrapper = dict(accumulative_counts=4)
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'063\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 63:
            sample['inputs'][2] = float('nan')
        return sample

    def is_good(self, index):
        return index != 63


class ProjectedByNorm(Classify):
    """A hook divides the weights of a neuron by their norm, which is 0."""

    source = 'kozistr/pytorch_optimizer#120'
    must_train = False
    is_written_by_hook = True
    causes = ('weight_nonfinite',)
    culprit = r'net\.2\.weight'
    says = (r'net\.2\.weight', 'hook')
    never_says = ('lower the learning rate', 'remove or repair')

    def hooks(self):
        return [Project()]


class Project(Hook):
    """All neurons get the same norm, although one of them is dead."""

    priority = 'LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 40:
            weight = runner.model.net[2].weight.data
            weight[1] = 0
            weight.div_(weight.norm(dim=1, keepdim=True))


class AnchorsGoBad(Regress):
    """A buffer of anchors is overwritten with NaN by a hook."""

    source = 'ultralytics/yolov5#4528'
    must_train = False
    is_written_by_hook = True
    causes = ('weight_nonfinite', 'buffer_nonfinite')
    culprit = 'anchors'
    says = ('anchors',)
    never_says = ('lower the learning rate', 'remove or repair')

    def network(self):
        net = super().network()
        net.register_buffer('anchors', torch.ones(4))
        return net

    def loss(self, net, batch):
        boxes = net(batch.inputs) * net.anchors
        return F.smooth_l1_loss(boxes, batch.target)

    def hooks(self):
        return [Rescale()]


class Rescale(Hook):
    """Anchors are recomputed from boxes, of which there are none."""

    priority = 'LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 50:
            runner.model.net.anchors.div_(0).mul_(0)


class ForwardWritesParameter(Regress):
    """Forward tracks a scale in a parameter; one batch is NaN.

    What forward wrote is put back with the batch, so that the run goes on.
    """

    source = 'facebookresearch/moco#70'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'010\.jpg'
    never_says = ('lower the learning rate', 'outside any guarded update')

    def network(self):
        net = super().network()
        net.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        return net

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 10:
            sample['inputs'][5] = float('nan')
        return sample

    def is_good(self, index):
        return index != 10

    def loss(self, net, batch):
        if net.training:
            net.scale.data.lerp_(batch.inputs.std(), 0.1)
        return F.smooth_l1_loss(net(batch.inputs / net.scale), batch.target)


class SumOfNothing(EpsilonOfZero):
    """Adagrad without epsilon divides by the sum of no gradients: 0/0."""

    source = 'lisa-lab/pylearn2#1496'
    optimizer = dict(type='Adagrad', lr=0.05, eps=0.0)
    culprit = 'Adagrad'


class LossRebuilt(Classify):
    """The loss is made anew from a number, so that no gradient flows.

    Nothing is learnt with or without a guard, which says so.
    """

    source = 'open-mmlab/mmsegmentation#3230'
    must_train = False
    says = ('no (parameter|gradient)',)
    never_says = ('lower the learning rate', 'remove or repair')

    def loss(self, net, batch):
        loss = super().loss(net, batch)
        return torch.tensor(loss.item(), requires_grad=True)


class MomentumInHalf(ForwardWritesParameter):
    """Forward writes a parameter while the loss scale finds its way.

    A routine overflow must not end the run.
    """

    source = 'open-mmlab/mmselfsup#644'
    precision = 'float16'
    wrapper = dict(loss_scale=dict(init_scale=2.0**24))
    causes = ()
    culprit = ''

    def sample(self, index, generator):
        return Regress.sample(self, index, generator)

    def is_good(self, index):
        return True


class MaskAndCorruptImage(FrozenMaskParameter):
    """A frozen mask of -inf, and one image that is NaN."""

    source = 'pytorch/pytorch#27968'
    is_healthy = False
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'015\.jpg'
    never_says = ('outside any guarded update', 'lower the learning rate')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 15:
            sample['inputs'][4] = float('nan')
        return sample

    def is_good(self, index):
        return index != 15


class OutlierInHalf(Classify):
    """One sample overflows float16, where float32 would commit it."""

    source = 'pytorch/pytorch#40497'
    precision = 'float16'
    causes = ('grad_nonfinite', 'loss_nonfinite', 'scale_overflow')
    culprit = r'020\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 20:
            sample['inputs'] = sample['inputs'] * 4e5
        return sample

    def is_good(self, index):
        return index != 20
