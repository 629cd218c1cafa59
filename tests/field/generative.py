"""Reports from generative models and reinforcement learning."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class AdvantageOfOne(Classify):
    """PPO: the standard deviation of a minibatch of one is NaN."""

    source = 'DLR-RM/stable-baselines3#325'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.(std|var|div|sub)'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['advantage'] = torch.randn((), generator=generator)
        # The last minibatch of each rollout has one step, the others pad.
        sample['is_valid'] = torch.tensor(
            index // 4 % 8 != 7 or index % 4 == 0
        )
        return sample

    def is_good(self, index):
        return index // 4 % 8 != 7

    def loss(self, net, batch):
        kept = batch.is_valid
        advantage = batch.advantage[kept]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_prob = net(batch.inputs[kept]).log_softmax(1)
        taken = log_prob.gather(1, batch.label[kept, None])[:, 0]
        loss_value = F.cross_entropy(net(batch.inputs), batch.label)
        loss_policy = -0.05 * (taken * advantage).mean()
        return dict(loss_value=loss_value, loss_policy=loss_policy)


class LogVariance(Scenario):
    """A VAE whose log variance is not limited: exp overflows.

    One sample lies far outside of the data.
    """

    source = 'vanderschaarlab/synthcity#331'
    causes = ('loss_nonfinite', 'grad_nonfinite', 'norm_overflow')
    culprit = r'aten\.exp|024\.jpg'
    optimizer = dict(type='Adam', lr=1e-2)
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.ModuleDict(
            dict(encoder=nn.Linear(8, 4), decoder=nn.Linear(2, 8))
        )

    def sample(self, index, generator):
        inputs = torch.randn(8, generator=generator)
        if index == 24:
            inputs *= 5000
        return dict(inputs=inputs)

    def is_good(self, index):
        return index != 24

    def loss(self, net, batch):
        mean, log_var = net.encoder(batch.inputs).chunk(2, 1)
        noise = torch.randn_like(mean) if net.training else 0.0
        outputs = net.decoder(mean + (log_var / 2).exp() * noise)
        divergence = log_var.exp() + mean.square() - 1 - log_var
        return dict(
            loss_fit=F.mse_loss(outputs, batch.inputs),
            loss_prior=0.05 * divergence.mean(),
        )


class GradientPenalty(Scenario):
    """WGAN-GP: the norm of a zero gradient has no gradient.

    A critic with ReLU is flat at some inputs.
    """

    source = 'keras-team/keras-io#910'
    iters = 150
    causes = ('grad_nonfinite',)
    culprit = r'sqrt|norm'
    says_in_full = ('sqrt|norm',)
    never_says = ('lower the learning rate', 'lower optim_wrapper.loss_scale')
    optimizer = dict(type='Adam', lr=1e-2)

    def network(self):
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def sample(self, index, generator):
        inputs = torch.randn(4, generator=generator)
        is_flat = torch.tensor(float(index == 16))
        return dict(inputs=inputs, label=inputs[:1], is_flat=is_flat)

    def is_good(self, index):
        return index != 16

    def loss(self, net, batch):
        with torch.enable_grad():
            points = batch.inputs.clone().requires_grad_()
            scores = net(points) * (1 - batch.is_flat[:, None])
            (slope,) = torch.autograd.grad(
                scores.sum(), points, create_graph=net.training
            )
        norm = slope.square().sum(1).sqrt()
        loss_critic = F.mse_loss(net(batch.inputs), batch.label)
        return dict(
            loss_critic=loss_critic,
            loss_penalty=0.1 * (norm - 1).square().mean(),
        )


class SignalOfNothing(Regress):
    """Min-SNR weights divide by a signal-to-noise ratio of 0."""

    source = 'TiankaiHang/Min-SNR-Diffusion-Training#4'
    iters = 200
    causes = ('loss_nonfinite',)
    culprit = r'aten\.(div|mul|minimum)'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        step = torch.randint(1, 50, (), generator=generator)
        if index % 32 == 3:
            step = torch.tensor(50)
        sample['ratio'] = 50 / step - 1
        return sample

    def is_good(self, index):
        return index % 32 != 3

    def loss(self, net, batch):
        weight = batch.ratio.clamp(max=5) / batch.ratio
        error = (net(batch.inputs) - batch.target).square().mean(1)
        return (error * weight).mean()


class EntropyByHand(Classify):
    """A binary entropy by log(1 - p), where p rounds to 1 in float32."""

    source = 'hwalsuklee/tensorflow-mnist-VAE#4'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.log'
    never_says = ('lower the learning rate', 'overflow in float32')

    def network(self):
        return nn.Linear(8, 1)

    def sample(self, index, generator):
        inputs = torch.randn(8, generator=generator)
        label = (inputs[:1] > 0).float()
        if index == 6:
            inputs, label = torch.full((8,), 50.0), torch.zeros(1)
            inputs[1:] = 0
        return dict(inputs=inputs, label=label)

    def is_good(self, index):
        return index != 6

    def loss(self, net, batch):
        prob = net(batch.inputs).mul(4).sigmoid()
        right = batch.label * prob.log()
        return -(right + (1 - batch.label) * (1 - prob).log()).mean()


class AllTheSame(Regress):
    """Values of a batch are scaled to [0, 1], and all are the same: 0/0."""

    source = 'facebookresearch/pytorch_GAN_zoo#89'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['target'] = torch.ones(4)
        return sample

    def is_good(self, index):
        return index // 4 % 9 != 4

    def loss(self, net, batch):
        low, high = batch.target.min(), batch.target.max()
        target = (batch.target - low) / (high - low)
        return F.smooth_l1_loss(net(batch.inputs), target)


class MinibatchDeviation(Regress):
    """The standard deviation over a group of one sample is NaN."""

    source = 'ziwei-jiang/PGGAN-PyTorch#1'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.std|031\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['num'] = torch.tensor(1 if index == 31 else 4)
        return sample

    def is_good(self, index):
        return index != 31

    def loss(self, net, batch):
        losses = []
        for depth, target, num in zip(
            net(batch.inputs), batch.target, batch.num
        ):
            error = depth[:num] - target[:num]
            losses.append(error.abs().mean() + 0.1 * error.std())
        return torch.stack(losses).mean()


class RunningNormalizer(Classify):
    """A loss is divided by its running average, which begins at 0.

    MMEngine loses one update, whose forward pass fills the average.
    """

    source = 'Unity-Technologies/ml-agents#4299'
    precision = 'float16'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    says = ('average',)
    never_says = ('lower the learning rate', 'leave out sample')

    def network(self):
        net = super().network()
        net.register_buffer('average', torch.zeros(()))
        return net

    def loss(self, net, batch):
        loss = super().loss(net, batch)
        if not net.training:
            return loss
        normalized = loss / net.average.clone()
        net.average.lerp_(loss.detach().float(), 0.1)
        return normalized


class GradientPenaltyInHalf(Classify):
    """A gradient penalty overflows float16, and so do its gradients.

    The loss is Inf at any loss scale. MMEngine's scaler comes down until
    gradients are finite, and then trains.
    """

    source = 'NVlabs/DG-Net#11'
    precision = 'float16'
    iters = 300
    optimizer = dict(type='Adam', lr=3e-3)
    must_train = True
    causes = ('loss_nonfinite',)
    culprit = r'aten\.pow'
    says = ('float32|float16',)
    never_says = ('lower the learning rate', 'leave out sample')

    def loss(self, net, batch):
        if not net.training:
            return super().loss(net, batch)
        inputs = batch.inputs.clone().requires_grad_()
        scores = net(inputs)
        total = scores.float().sum() * 5e3
        (grad,) = torch.autograd.grad(total, inputs, create_graph=True)
        penalty = grad.half().square().sum().float() * 1e-6
        return F.cross_entropy(scores, batch.label) + penalty
