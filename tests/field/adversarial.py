"""Reports from GANs, whose networks have an optimizer each."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario


class Gan(Scenario):
    """A generator learns where points lie, against a discriminator."""

    iters = 200
    parts = ('discriminator', 'generator')
    optimizer = dict(type='Adam', lr=5e-3, betas=(0.5, 0.9))

    def network(self):
        return nn.ModuleDict(
            dict(
                generator=nn.Sequential(
                    nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)
                ),
                discriminator=nn.Sequential(
                    nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)
                ),
            )
        )

    def sample(self, index, generator):
        points = torch.randn(2, generator=generator) / 2 + 2
        return dict(inputs=points, noise=torch.randn(4, generator=generator))

    def loss(self, net, batch):
        """Return the distance between the means of fakes and real points."""
        fakes = net.generator(batch.noise)
        return (fakes.mean(0) - batch.inputs.mean(0)).norm()

    def loss_of(self, part, net, batch):
        fakes = net.generator(batch.noise)
        if part == 'generator':
            return F.softplus(-self.score(net, fakes, batch)).mean()
        real = F.softplus(-self.score(net, batch.inputs, batch)).mean()
        fake = F.softplus(self.score(net, fakes.detach(), batch)).mean()
        return real + fake

    def score(self, net, points, batch):
        """Return how real points look."""
        return net.discriminator(points)


class LossesPull(Gan):
    """The generator's loss rises while the discriminator learns."""

    source = 'soumith/ganhacks#36'
    is_healthy = True
    iters = 300


class LossesPullClipped(LossesPull):
    """The same with clipped gradients, which accumulate over two batches."""

    source = 'ustclby/Unsupervised-Domain-Specific-Deblurring#1'
    wrapper = dict(accumulative_counts=2, clip_grad=dict(max_norm=0.1))


class PenaltyOfFlatCritic(Gan):
    """The norm of a gradient that is 0 has no gradient."""

    source = 'LeeDoYup/DeblurGAN-tf#11'
    causes = ('grad_nonfinite',)
    culprit = r'sqrt|norm'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_flat'] = torch.tensor(float(index == 20))
        return sample

    def is_good(self, index):
        return index != 20

    def loss_of(self, part, net, batch):
        loss = super().loss_of(part, net, batch)
        if part == 'generator':
            return loss
        points = batch.inputs.clone().requires_grad_()
        scores = net.discriminator(points) * (1 - batch.is_flat[:, None])
        (slope,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        norm = slope.square().sum(1).sqrt()
        return loss + 0.1 * (norm - 1).square().mean()


class LogOfCertainty(Gan):
    """A hand-written log(1 - p) of a fake that is surely found: log(0)."""

    source = 'zhysora/PSGan-Family#10'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.log'
    never_says = ('lower the learning rate',)
    wrapper = dict(clip_grad=dict(max_norm=1.0))

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['factor'] = torch.tensor(1e4 if index == 20 else 1.0)
        return sample

    def is_good(self, index):
        return index != 20

    def loss_of(self, part, net, batch):
        fakes = net.generator(batch.noise)
        if part == 'generator':
            return -net.discriminator(fakes).sigmoid().log().mean()
        real = net.discriminator(batch.inputs).sigmoid().log().mean()
        score = net.discriminator(fakes.detach()) * batch.factor[:, None]
        fake = (1 - score.abs().sigmoid()).log().mean()
        return -real - fake


class NanLoop(Gan):
    """Half precision, gradient accumulation and clipping: NaN now and then."""

    source = 'lucidrains/lightweight-gan#92'
    iters = 400
    precision = 'float16'
    wrapper = dict(accumulative_counts=4, clip_grad=dict(max_norm=1.0))
    causes = ('grad_nonfinite', 'loss_nonfinite', 'scale_overflow')
    culprit = r'020\.jpg|mul'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['factor'] = torch.tensor(1e5 if index == 20 else 1.0)
        return sample

    def is_good(self, index):
        return index != 20

    def score(self, net, points, batch):
        hidden = net.discriminator[:2](points)
        hidden = hidden * batch.factor[:, None].to(hidden.dtype)
        return net.discriminator[2](hidden).float()
