"""Reports from science models, routers, recommenders and agents."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class ForceOfNorm(Scenario):
    """Forces are derivatives of an energy that holds a norm.

    The vector of one atom is 0. Weighting the force by 0 does not help.
    """

    source = 'choderalab/modelforge#390'
    optimizer = dict(type='Adam', lr=1e-2)
    causes = ('loss_nonfinite',)
    culprit = r'020\.jpg'
    says_in_full = (r'derivative of sqrt, science\.py', 'loss_force')
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    def sample(self, index, generator):
        inputs = torch.randn(3, 3, generator=generator)
        energy = inputs.norm(dim=1).sum()[None]
        if index == 20:
            inputs[1] = 0
        return dict(inputs=inputs, energy=energy)

    def is_good(self, index):
        return index != 20

    def loss(self, net, batch):
        with torch.enable_grad():
            points = batch.inputs.clone().requires_grad_()
            energy = net(points.square().sum(2).sqrt())
            (slope,) = torch.autograd.grad(
                energy.sum(), points, create_graph=net.training
            )
        return dict(
            loss_energy=F.smooth_l1_loss(energy, batch.energy),
            loss_force=0 * slope.square().mean(),
        )


class BalancedRouter(Classify):
    """The loads of experts are all the same at first: sqrt at 0."""

    source = 'google-research/vmoe#218'
    must_train = False
    causes = ('grad_nonfinite',)
    culprit = 'derivative of sqrt'
    says_in_full = ('safe_sqrt',)
    never_says = ('lower the learning rate', 'leave out sample', 'aten.div')

    def network(self):
        router = nn.Linear(8, 4, bias=False)
        nn.init.zeros_(router.weight)
        return nn.ModuleDict(dict(router=router, experts=nn.Linear(8, 12)))

    def loss(self, net, batch):
        prob = net.router(batch.inputs).softmax(1)
        outputs = net.experts(batch.inputs).view(-1, 4, 3)
        load = prob.sum(0)
        spread = load.var().sqrt() / load.mean()
        mixed = (prob[:, :, None] * outputs).sum(1)
        return dict(
            loss_cls=F.cross_entropy(mixed, batch.label),
            loss_balance=0.01 * spread.square(),
        )


class JunkInMemory(Regress):
    """A parameter was never initialized: finite, but 2e25."""

    source = 'seongjunyun/Graph_Transformer_Networks#20'
    must_train = False
    causes = ('loss_nonfinite',)
    culprit = r'net\.gate'
    says_in_full = ('initialization',)
    never_says = ('leave out sample', 'lower the learning rate')

    def network(self):
        net = super().network()
        net.gate = nn.Parameter(torch.tensor([1.0, 2e25, 0.0, 1e-30]))
        return net

    def loss(self, net, batch):
        return F.mse_loss(net(batch.inputs) * net.gate, batch.target)


class ValuesChaseThemselves(Scenario):
    """Q-learning without a target network: losses grow without end."""

    source = 'facebookresearch/ReAgent#189'
    iters = 300
    must_train = False
    causes = ('loss_nonfinite', 'grad_nonfinite', 'norm_overflow')
    says = ('learning rate',)
    never_says = ('leave out sample',)

    def network(self):
        return nn.Linear(4, 1)

    def sample(self, index, generator):
        inputs = torch.rand(4, generator=generator)
        return dict(inputs=inputs, reward=inputs[:1])

    def loss(self, net, batch):
        target = batch.reward + net(batch.inputs * 4).detach()
        return F.mse_loss(net(batch.inputs), target)


class WeightsOfZero(Classify):
    """A weighted mean of samples whose weights are all 0."""

    source = 'cossio/RestrictedBoltzmannMachines.jl#143'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    says = (r'024\.jpg',)
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['weight'] = torch.tensor(float(self.is_good(index)))
        return sample

    def is_good(self, index):
        return not 24 <= index < 28

    def loss(self, net, batch):
        losses = F.cross_entropy(
            net(batch.inputs), batch.label, reduction='none'
        )
        return (losses * batch.weight).sum() / batch.weight.sum()


class MaskedMicroBatch(WeightsOfZero):
    """DAPO: all completions of one of four micro-batches are masked."""

    source = 'unslothai/unsloth-zoo#1286'
    iters = 240
    wrapper = dict(accumulative_counts=4)
    says = ()


class TargetsLeftOutLate(Regress):
    """A column is missing now and then; nanmean comes after the squares.

    The loss is finite, but 0 times NaN in its derivative is not.
    """

    source = 'BLAST-AI-ML/synapse#237'
    causes = ('grad_nonfinite',)
    culprit = r'derivative of pow at science\.py'
    says = ('0 times NaN',)
    says_in_full = (r"leave NaN or Inf of 'data_samples\.target' out before",)
    never_says = (
        'lower the learning rate',
        'leave out sample',
        'not the model',
        'seems to mask',
    )

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['target'][1] = torch.nan
        return sample

    def is_good(self, index):
        return index % 16 != 3

    def loss(self, net, batch):
        return (net(batch.inputs) - batch.target).square().nanmean()


class HalfOfItIsMissing(TargetsLeftOutLate):
    """Masked after the loss in float16, from the first overflow on."""

    source = 'BLAST-AI-ML/synapse#237'
    precision = 'float16'
    wrapper = dict(loss_scale='dynamic')
    iters = 160
    culprit = r'derivative of smooth_l1_loss at science\.py'

    def loss(self, net, batch):
        losses = F.smooth_l1_loss(
            net(batch.inputs).float(), batch.target, reduction='none'
        )
        return losses.nan_to_num().mean()


class ReflectionInFlow(Regress):
    """An invertible convolution starts with a negative determinant.

    ``logdet`` is NaN then, and its gradients are finite.
    """

    source = 'NVIDIA/waveglow#123'
    must_train = False
    iters = 60
    optimizer = dict(type='SGD', lr=1e-3)
    causes = ('loss_nonfinite',)
    culprit = r'aten\.logdet, science\.py'
    says_in_full = ('whose determinant is negative', 'slogdet')
    never_says = ('lower the learning rate', 'leave out sample', 'mask')

    def network(self):
        net = nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.eye(8)[[1, 0, *range(2, 8)]])
        return net

    def loss(self, net, batch):
        energy = 0.5 * net(batch.inputs).square().sum(1).mean()
        # Without the NaN, so that the runs can be compared.
        if not net.training:
            return energy - torch.linalg.slogdet(net.weight)[1]
        return energy - torch.logdet(net.weight)


class OneReflection(ReflectionInFlow):
    """A single sample has a matrix whose determinant is negative."""

    source = 'NVIDIA/waveglow#123'
    must_train = True
    iters = 100
    optimizer = dict(type='SGD', lr=0.1)
    culprit = r"'031\.jpg'.*aten\.logdet"
    never_says = ('lower the learning rate', 'mask')

    def network(self):
        return nn.Linear(8, 9)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['sign'] = torch.tensor(1.0 if self.is_good(index) else -1.0)
        return sample

    def is_good(self, index):
        return index != 31

    def loss(self, net, batch):
        matrix = net(batch.inputs).view(-1, 3, 3) * 0.1 + torch.eye(3)
        sizes = matrix.square().sum((1, 2))
        matrix = torch.cat(
            [matrix[:, :1] * batch.sign[:, None, None], matrix[:, 1:]], 1
        )
        return (sizes - torch.logdet(matrix)).mean()


class CodesNeverUsed(Regress):
    """VQ-VAE: sums of codes are divided by their uses, which may be 0."""

    source = 'nadavbh12/VQ-VAE#11'
    must_train = False
    causes = ('buffer_nonfinite',)
    culprit = r'aten\.div'
    says = ('codebook',)
    never_says = (
        'lower the learning rate',
        'leave out sample',
        'layer that feeds',
    )

    def network(self):
        net = nn.ModuleDict(
            dict(encoder=nn.Linear(8, 4), decoder=nn.Linear(4, 4))
        )
        net.register_buffer('codebook', torch.randn(32, 4))
        net.register_buffer('uses', torch.zeros(32))
        net.register_buffer('total', torch.zeros(32, 4))
        return net

    def loss(self, net, batch):
        depth = net.encoder(batch.inputs)
        index = torch.cdist(depth, net.codebook).argmin(1)
        code = net.codebook[index]
        if net.training:
            with torch.no_grad():
                chosen = F.one_hot(index, 32).float()
                net.uses.lerp_(chosen.sum(0), 0.1)
                net.total.lerp_(chosen.T @ depth, 0.1)
                net.codebook.copy_(net.total / net.uses[:, None])
        outputs = net.decoder(depth + (code - depth).detach())
        loss_code = 0.25 * F.mse_loss(depth, code)
        return F.smooth_l1_loss(outputs, batch.target) + loss_code


class NegativeLikelihood(Regress):
    """The negative log-likelihood of a Gaussian falls below 0."""

    source = 'jwchoi384/Gaussian_YOLOv3#19'
    is_healthy = True
    iters = 400
    optimizer = dict(type='Adam', lr=1e-2)

    def network(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def loss(self, net, batch):
        mean, log_var = net(batch.inputs).chunk(2, 1)
        variance = log_var.exp().clamp(min=1e-6)
        return F.gaussian_nll_loss(mean, batch.target, variance)


class SumOverTokens(Classify):
    """A loss that is summed over tokens: the scale comes down at first."""

    source = 'facebookresearch/fairseq#4555'
    is_healthy = True
    precision = 'float16'
    optimizer = dict(type='Adam', lr=1e-2)
    wrapper = dict(loss_scale='dynamic')

    def loss(self, net, batch):
        return 3000 * F.cross_entropy(net(batch.inputs), batch.label)


class LongIntegration(Regress):
    """A linear neural ODE becomes unstable as its weights grow.

    Runge-Kutta's fourth order over 30 units of time: losses are small up to
    the step after which each gradient norm overflows.
    """

    source = 'cfinlay/ffjord-rnode#3'
    iters = 80
    optimizer = dict(type='Adam', lr=0.3)
    must_train = False
    must_reach = 20
    causes = ('norm_overflow',)
    says = ('learning rate',)
    says_in_full = ('learning rate x 0.1',)
    never_says = ('leave out sample',)

    def network(self):
        net = nn.Linear(8, 8)
        nn.init.normal_(net.weight, std=0.01)
        return net

    def loss(self, net, batch):
        state, step = batch.inputs, 0.5
        for _ in range(60):
            first = net(state)
            second = net(state + step / 2 * first)
            third = net(state + step / 2 * second)
            fourth = net(state + step * third)
            mean = (first + 2 * second + 2 * third + fourth) / 6
            state = state + step * mean
        return F.mse_loss(state[:, :4], batch.target)
