"""Reports from self-supervised and metric learning."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class ZeroNorm(Regress):
    """A vector is divided by its norm, which is 0 for a blank crop."""

    source = 'sihyun-yu/REPA#46'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|019\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Linear(8, 4, bias=False)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 19:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 19

    def loss(self, net, batch):
        latent = net(batch.inputs)
        latent = latent / latent.norm(dim=1, keepdim=True)
        return (1 - (latent * F.normalize(batch.target, dim=1)).sum(1)).mean()


class NearestNeighbour(Regress):
    """KoLeo: the log of the distance to the nearest of a batch of one."""

    source = 'facebookresearch/dinov2#314'
    batch_size = 2
    causes = ('loss_nonfinite',)
    culprit = r'aten\.log'
    never_says = ('lower the learning rate', 'overflow in float32')

    def sample(self, index, generator):
        if index % 8 == 5:  # the same image twice in a batch
            generator.manual_seed(index - 1)
        return super().sample(index, generator)

    def is_good(self, index):
        return index // 2 % 4 != 2

    def loss(self, net, batch):
        latent = net(batch.inputs)
        loss_fit = F.smooth_l1_loss(latent, batch.target)
        distance = (latent[0] - latent[1]).abs().sum()
        return dict(loss_fit=loss_fit, loss_koleo=-0.05 * distance.log())


class LearnedTemperature(Classify):
    """CLIP without a limit on its temperature: exp overflows.

    Fine-tuning at a rate that is far too high throws the temperature up.
    """

    source = 'openai/CLIP#46'
    iters = 200
    optimizer = dict(type='SGD', lr=1000.0)
    must_train = False
    causes = ('loss_nonfinite', 'grad_nonfinite', 'norm_overflow')
    says_in_full = ('learning rate|clip_grad|exp',)
    never_says = ('remove or repair',)

    def network(self):
        net = nn.Linear(8, 3)
        net.weight.data = torch.eye(3, 8)
        net.weight.requires_grad_(False)
        net.temperature = nn.Parameter(torch.tensor(2.6))
        return net

    def loss(self, net, batch):
        logits = F.linear(
            F.normalize(batch.inputs, dim=1), F.normalize(net.weight, dim=1)
        )
        return F.cross_entropy(logits * net.temperature.exp(), batch.label)


class TeacherKeepsNan(Scenario):
    """A teacher by moving average takes the NaN of one batch for ever."""

    source = 'facebookresearch/unbiased-teacher#46'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'042\.jpg'
    never_says = ('lower the learning rate',)
    optimizer = dict(type='SGD', lr=0.05)

    def network(self):
        net = nn.ModuleDict(dict(query=nn.Linear(8, 4), key=nn.Linear(8, 4)))
        net.key.requires_grad_(False)
        net.register_buffer('center', torch.zeros(4))
        return net

    def sample(self, index, generator):
        image = torch.randn(8, generator=generator)
        if index == 42:
            image[0] = float('nan')
        return dict(inputs=image)

    def is_good(self, index):
        return index != 42

    def loss(self, net, batch):
        with torch.no_grad():
            if net.training:
                net.key.weight.lerp_(net.query.weight, 0.05)
            key = net.key(batch.inputs)
            if net.training:
                net.center.lerp_(key.mean(0), 0.1)
        return (net.query(batch.inputs) - key + net.center).square().mean()


class SineOfArcFace(Classify):
    """ArcFace: sqrt(1 - cos^2) has no gradient at a cosine of 1."""

    source = 'ronghuaiyang/arcface-pytorch#91'
    causes = ('grad_nonfinite',)
    culprit = r'sqrt'
    never_says = ('lower the learning rate', 'lower optim_wrapper.loss_scale')

    def network(self):
        return nn.Linear(8, 3)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_center'] = torch.tensor(index == 28)
        return sample

    def is_good(self, index):
        return index != 28

    def loss(self, net, batch):
        cosine = F.linear(
            F.normalize(batch.inputs, dim=1), F.normalize(net.weight, dim=1)
        )
        at_center = batch.is_center[:, None]
        cosine = torch.where(at_center, cosine * 0 + 1, cosine * 0.99)
        sine = (1 - cosine**2).sqrt()
        margin = cosine * 0.98 - sine * 0.2
        target = F.one_hot(batch.label, 3)
        logits = torch.where(target == 1, margin, cosine)
        return F.cross_entropy(logits * 8, batch.label)


class DeadCode(Scenario):
    """A codebook by moving averages divides by the use of a dead code."""

    source = 'ZhangXInFD/SpeechTokenizer#18'
    iters = 150
    must_train = False
    causes = ('buffer_nonfinite', 'loss_nonfinite', 'weight_nonfinite')
    culprit = r'codes|aten\.div'
    never_says = ('lower the learning rate', 'remove or repair')
    optimizer = dict(type='SGD', lr=0.05)

    def network(self):
        net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
        net.register_buffer('codes', torch.randn(6, 4))
        return net

    def sample(self, index, generator):
        return dict(inputs=torch.randn(8, generator=generator))

    def loss(self, net, batch):
        latent = net[0](batch.inputs)
        nearest = torch.cdist(latent.detach(), net.codes).argmin(1)
        quantized = net.codes[nearest]
        if net.training:
            chosen = F.one_hot(nearest, len(net.codes)).float()
            means = chosen.T @ latent.detach() / chosen.sum(0)[:, None]
            net.codes.lerp_(means, 0.1)
        outputs = net[1](latent + (quantized - latent).detach())
        loss_commit = F.mse_loss(latent, quantized)
        return dict(
            loss_fit=F.mse_loss(outputs, batch.inputs), loss_commit=loss_commit
        )


class SoftTargets(Classify):
    """Mixup with a hand-written KL: 0 * log(0) of the target is NaN."""

    source = 'RasmussenLab/vamb#12'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.log|aten\.mul|020\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        target = F.one_hot(sample['label'], 3) * 0.9 + 0.1 / 3
        if index == 20:  # a sample that was not mixed
            target = F.one_hot(sample['label'], 3).float()
        return dict(inputs=sample['inputs'], target=target)

    def is_good(self, index):
        return index != 20

    def loss(self, net, batch):
        log_prob = net(batch.inputs).log_softmax(1)
        error = batch.target * (batch.target.log() - log_prob)
        return error.sum(1).mean()


class ConstantImage(Regress):
    """An image is divided by its standard deviation, and is constant."""

    source = 'Project-MONAI/MONAI#1092'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|046\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 46:
            sample['target'] = torch.zeros(4)
        return sample

    def is_good(self, index):
        return index != 46

    def loss(self, net, batch):
        target = batch.target
        mean = target.mean(1, keepdim=True)
        target = (target - mean) / target.var(1, keepdim=True).sqrt()
        return F.smooth_l1_loss(net(batch.inputs), target)


class WeightNormOfZeros(Classify):
    """Weight normalization of a layer that begins at zero: 0/0.

    Each batch is struck from the first iteration on; no sample is to blame.
    """

    source = 'pytorch/pytorch#19126'
    must_train = False
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'aten\.(div|norm|linalg)|norm'
    says_in_full = ('norm|division',)
    never_says = (
        'lower the learning rate',
        'remove or repair',
        'leave out sample',
        'culprit: sample',
    )

    def network(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), ZeroWeightNorm())


class ZeroWeightNorm(nn.Module):
    """A layer whose weight has its direction and its length apart."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(3, 16))
        self.length = nn.Parameter(torch.ones(3, 1))

    def forward(self, inputs):
        norm = self.direction.square().sum(1, keepdim=True).sqrt()
        return F.linear(inputs, self.length * self.direction / norm)


class NeverInitialized(Classify):
    """A parameter of torch.empty that nobody filled holds NaN."""

    source = 'sauradip/STALE#16'
    must_train = False
    causes = ('weight_nonfinite', 'loss_nonfinite')
    culprit = r'background'
    says = ('background',)
    never_says = (
        'outside any guarded update',
        'hooks, EMA',
        'lower the learning rate',
        'remove or repair',
        'leave out sample',
        'culprit: sample',
    )

    def network(self):
        net = nn.Linear(8, 3)
        net.background = nn.Parameter(torch.full((8,), float('nan')))
        return net

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs + net.background), batch.label)
