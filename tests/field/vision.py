"""Reports from pose, depth, video, stereo, splatting and self-supervision."""

import math

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class NegativeWidth(Regress):
    """An annotation whose right edge is left of the left edge: log(-0.3)."""

    source = 'open-mmlab/mmdetection#3397'
    causes = ('loss_nonfinite',)
    culprit = r'033\.jpg'
    says_in_full = ('outside of its domain',)
    never_says = ('lower the learning rate', 'add an epsilon')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        width = 0.1 + torch.rand((), generator=generator)
        sample['width'] = -width if index == 33 else width
        return sample

    def is_good(self, index):
        return index != 33

    def loss(self, net, batch):
        output = net(batch.inputs)
        loss = F.smooth_l1_loss(output, batch.target)
        return loss + F.smooth_l1_loss(output[:, 0], batch.width.log())


class ScanOfOnePoint(Scenario):
    """The sample variance of a single point is 0/0.

    The loss is finite, and NaN stays in the running variance.
    """

    source = 'facebookresearch/SparseConvNet#190'
    batch_size = 1
    causes = ('buffer_nonfinite',)
    culprit = r'040\.jpg'
    says = ('running_var',)
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Sequential(
            nn.Linear(3, 4), PointNorm(), nn.ReLU(), nn.Linear(4, 2)
        )

    def sample(self, index, generator):
        num_points = 1 if index == 40 else 6 + index % 5
        points = torch.randn(num_points, 3, generator=generator)
        return dict(inputs=points, label=(points[:, 0] > 0).long())

    def is_good(self, index):
        return index != 40

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs[0]), batch.label[0])


class PointNorm(nn.Module):
    """Batch norm over the points of one scan."""

    def __init__(self):
        super().__init__()
        self.register_buffer('running_var', torch.ones(4))

    def forward(self, points):
        variance = points.var(0, unbiased=False)
        if self.training:
            self.running_var.lerp_(points.detach().var(0), 0.1)
        else:
            variance = self.running_var
        return (points - points.mean(0)) / (variance + 1e-5).sqrt()


class DuplicatePoints(Scenario):
    """The logarithm of the distance of two equal points is -inf.

    It is a parameter, whose exponential is a healthy 0.
    """

    source = 'graphdeco-inria/gaussian-splatting#292'
    optimizer = dict(type='Adam', lr=1e-2)
    is_healthy = True

    def network(self):
        net = nn.ModuleDict(dict(head=nn.Linear(4, 6)))
        scales = torch.zeros(6)
        scales[2] = -math.inf
        net.scales = nn.Parameter(scales)
        return net

    def sample(self, index, generator):
        inputs = torch.randn(4, generator=generator)
        return dict(inputs=inputs, target=torch.cat([inputs, inputs[:2]]))

    def loss(self, net, batch):
        output = net['head'](batch.inputs) * net.scales.exp()
        return F.smooth_l1_loss(output, batch.target)


class GrowingScale(Classify):
    """A loss scale that grows soon overflows again and again."""

    source = 'pengzhiliang/MAE-pytorch#49'
    precision = 'float16'
    wrapper = dict(loss_scale=dict(init_scale=2.0**16, growth_interval=4))
    is_healthy = True


class EpsilonInHalf(Classify):
    """An epsilon of 1e-12 is 0 in float16: a zero embedding gives 0/0."""

    source = 'pytorch/pytorch#32137'
    precision = 'float16'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    says_in_full = ('bfloat16', 'larger epsilon')
    never_says = ('lower the learning rate', "leave out sample '020")

    def network(self):
        return nn.ModuleDict(
            dict(embed=nn.Linear(8, 16, bias=False), head=nn.Linear(16, 3))
        )

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 20:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 20

    def loss(self, net, batch):
        embedding = F.normalize(net['embed'](batch.inputs).relu(), dim=1)
        return F.cross_entropy(net['head'](embedding * 4), batch.label)


class MemoryOfNan(Regress):
    """A video model keeps a feature as an attribute: NaN stays in it."""

    source = 'exiawsh/StreamPETR#85'
    batch_size = 1
    must_train = False
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'021\.jpg'
    says_in_full = ("'net.memory', a plain attribute", 'register_buffer')
    never_says = ('lower the learning rate', 'is beyond')

    def network(self):
        net = super().network()
        net.memory = torch.zeros(4)
        return net

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 21:
            sample['inputs'][2] = float('nan')
        return sample

    def is_good(self, index):
        return index != 21

    def loss(self, net, batch):
        output = net(batch.inputs)
        if net.training:
            net.memory = (net.memory + output.detach()[0]) / 2
            output = output + 0.1 * net.memory
        return F.smooth_l1_loss(output, batch.target)


class OnceOnly(Classify):
    """A NaN that does not come again, from the same state and batch."""

    source = 'open-mmlab/mmdetection#6409'
    causes = ('loss_nonfinite',)
    says_in_full = ('transient',)
    never_says = ('lower the learning rate', 'leave out sample')

    def network(self):
        net = super().network()
        net.num_calls = 0
        return net

    def loss(self, net, batch):
        loss = super().loss(net, batch)
        net.num_calls += 1
        # The first calls measure the loss at the start.
        return loss * float('nan') if net.num_calls == 50 else loss


class SigmaOfZero(Scenario):
    """A keypoint of size 0: exp(-inf) is 0, but its gradient is NaN."""

    source = 'ultralytics/ultralytics#25656'
    must_train = False
    causes = ('grad_nonfinite',)
    culprit = r'derivative of div'
    says_in_full = ('has a pole at div',)
    never_says = ('lower the learning rate', 'leave out sample')

    def network(self):
        net = nn.ModuleDict(dict(head=nn.Linear(6, 4)))
        net.register_buffer('sigmas', torch.tensor([0.5, 0.5, 0.0, 0.5]))
        return net

    def sample(self, index, generator):
        inputs = torch.randn(6, generator=generator)
        return dict(inputs=inputs, keypoints=inputs[:4] / 2)

    def loss(self, net, batch):
        distance = (net['head'](batch.inputs) - batch.keypoints) ** 2
        return (1 - torch.exp(-distance / (2 * net.sigmas**2))).mean()


class NoPatchKept(Regress):
    """A random mask that keeps no patch of an image: 0/0, now and then."""

    source = 'open-mmlab/mmpretrain#1811'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    never_says = ('lower the learning rate', 'leave out sample')

    def loss(self, net, batch):
        error = (net(batch.inputs) - batch.target) ** 2
        if not net.training:
            return error.mean()
        is_kept = (torch.rand(error.shape) < 0.5).float()
        return ((error * is_kept).sum(1) / is_kept.sum(1)).mean()


class ClippedCritic(Scenario):
    """A loss that is negative and falls, and weights that a hook clips."""

    source = 'JiahuiYu/generative_inpainting#426'
    optimizer = dict(type='RMSprop', lr=1e-3)
    is_healthy = True

    def network(self):
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def sample(self, index, generator):
        fake = torch.randn(4, generator=generator)
        real = torch.randn(4, generator=generator) + 1
        return dict(inputs=real, fake=fake)

    def loss(self, net, batch):
        return net(batch.fake).mean() - net(batch.inputs).mean()

    def hooks(self):
        return [ClipWeights()]


class ClipWeights(Hook):
    """Clip all weights after each step."""

    priority = 'LOW'

    def after_train_iter(self, runner, *args, **kwargs):
        for param in runner.model.parameters():
            param.data.clamp_(-0.1, 0.1)


class ProposalOfNoWidth(Regress):
    """A second stage divides by the width of a proposal, which may be 0.

    Its target is Inf, but gradients are finite, in a fifth of the batches.
    """

    source = 'Thinklab-SJTU/R3Det_Tensorflow#20'
    iters = 300
    causes = ('loss_nonfinite',)
    culprit = r'aten\.reciprocal'
    says = ('more than one in ten',)
    never_says = ('lower the learning rate', 'leave out sample')

    def loss(self, net, batch):
        output = net(batch.inputs)
        loss = F.smooth_l1_loss(output, batch.target)
        if not net.training:
            return loss
        width = (output[:, 0] + 0.3).relu().detach()
        refined = F.smooth_l1_loss(output[:, 3], (1 / width).log())
        return dict(loss=loss, loss_refined=0.05 * refined)


class BurstInBatchNorm(Classify):
    """One sample of 1e25: the batch's variance is Inf, the loss finite."""

    source = 'wayveai/fiery#20'
    causes = ('buffer_nonfinite',)
    culprit = r"leave out sample '022\.jpg'"
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Sequential(nn.BatchNorm1d(8), super().network())

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 22:
            sample['inputs'] *= 1e25
        return sample

    def is_good(self, index):
        return index != 22


class EqualSingularValues(Regress):
    """The rotation that an SVD finds has no derivative at the identity."""

    source = 'tensorflow/tensorflow#17476'
    causes = ('grad_nonfinite',)
    culprit = r"leave out sample '020\.jpg'"
    never_says = ('lower the learning rate', 'overflow')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_same'] = torch.tensor(float(index == 20))
        return sample

    def is_good(self, index):
        return index != 20

    def loss(self, net, batch):
        output = net(batch.inputs)
        loss = F.smooth_l1_loss(output, batch.target)
        if not net.training:
            return loss
        is_same = batch.is_same[:, None, None]
        matrix = output.reshape(-1, 2, 2) * (1 - is_same)
        left, _, right = torch.linalg.svd(matrix + torch.eye(2) * is_same)
        return loss + 1e-3 * (left @ right).sum((1, 2)).mean()


class NothingLabelled(Classify):
    """A batch whose labels are all ignored: the mean of nothing is NaN."""

    source = 'pytorch/pytorch#70348'
    causes = ('loss_nonfinite',)
    culprit = 'nll_loss'
    says_in_full = ('all labels are ignored',)
    never_says = ('lower the learning rate', 'epsilon', 'overflow')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index // 4 == 5:
            sample['label'] = torch.tensor(-100)
        return sample

    def is_good(self, index):
        return index // 4 != 5


class HueOfNormalized(Regress):
    """A random change of colors gives NaN for any image now and then."""

    source = 'tanjeffreyz/yolo-v1#1'
    iters = 200
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = "'inputs' is not finite"
    says_in_full = ('such as an augmentation',)
    never_says = ('leave out sample', 'lower the learning rate')
    num_calls = 0

    def network(self):
        self.num_calls = 0
        return super().network()

    def make_sample(self, index):
        sample = super().make_sample(index)
        self.num_calls += 1
        # Not while the loss is measured, before and after the run.
        is_trained = 0 < self.num_calls - self.num_samples <= 4 * self.iters
        if is_trained and (7919 * self.num_calls + 13 * index) % 37 == 0:
            sample['inputs'][3] = math.nan
        return sample

    def loss(self, net, batch):
        return F.mse_loss(net(batch.inputs), batch.target)
