"""Reports about optimizers that are not PyTorch's own."""

import torch
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.nn import functional as F

from .tasks import Classify, Regress

INNOCENT = (
    'outside any guarded update',
    'hooks, EMA',
    'lower the learning rate',
    'leave out sample',
    r'eps=0\b',
    'centered',
)


class OwnOptimizer(torch.optim.Optimizer):
    """An optimizer that calls ``update`` for each parameter."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group['params']:
                if param.grad is not None:
                    self.update(param, self.state[param], group)

    def update(self, param, state, group):
        raise NotImplementedError


@OPTIMIZERS.register_module()
class FactoredRoots(OwnOptimizer):
    """Roots of factored means of squares, without an epsilon."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def update(self, param, state, group):
        if param.dim() < 2:
            param.sub_(param.grad.sign(), alpha=group['lr'])
            return
        squares = param.grad.square()
        rows, columns = squares.mean(1), squares.mean(0) + 1e-30
        factor = (rows / rows.mean()).add(1e-30).rsqrt()
        step = param.grad * factor[:, None] * columns.rsqrt()
        param.sub_(step.clamp(-1, 1), alpha=group['lr'])


class FactoredWithoutEpsilon(Classify):
    """Adafactor divides by the mean of squares of a gradient that is 0.

    A head that takes no part in the loss has such a gradient.
    """

    source = 'microsoft/LLM2CLIP#64'
    optimizer = dict(type='FactoredRoots', lr=1e-2)
    must_train = False
    causes = ('step_nonfinite',)
    culprit = r'net\.unused\.weight'
    says = ('add an epsilon to the step of FactoredRoots',)
    never_says = INNOCENT

    def network(self):
        net = super().network()
        net.add_module('unused', nn.Linear(3, 3))
        return net

    def loss(self, net, batch):
        unused = 0 * net.unused(batch.inputs[:, :3])
        return F.cross_entropy(net[:3](batch.inputs) + unused, batch.label)


@OPTIMIZERS.register_module()
class VanishingEpsilon(OwnOptimizer):
    """An epsilon that shrinks with the gradient, down to 0."""

    def __init__(self, params, lr, eps=1e-8):
        super().__init__(params, dict(lr=lr, eps=eps))

    def update(self, param, state, group):
        mean = state.setdefault('mean', torch.zeros_like(param))
        mean.lerp_(param.grad.square(), 0.1)
        size = param.grad.square().mean().sqrt().clamp(max=1)
        root = mean.sqrt() + group['eps'] * size
        param.sub_(param.grad / root, alpha=group['lr'])


class FirstGradientOfLora(Classify):
    """FAdam: the first gradient of one LoRA factor is exactly 0."""

    source = 'lessw2020/FAdam_PyTorch#1'
    optimizer = dict(type='VanishingEpsilon', lr=1e-2)
    must_train = False
    causes = ('step_nonfinite',)
    culprit = r'net\.down\.weight'
    says = ('which its eps=1e-08 does not reach',)
    never_says = INNOCENT

    def network(self):
        net = nn.ModuleDict(
            dict(
                base=nn.Linear(8, 3),
                down=nn.Linear(8, 2, bias=False),
                up=nn.Linear(2, 3, bias=False),
            )
        )
        nn.init.zeros_(net.up.weight)
        return net

    def loss(self, net, batch):
        outputs = net.base(batch.inputs) + net.up(net.down(batch.inputs))
        return F.cross_entropy(outputs, batch.label)


@OPTIMIZERS.register_module()
class TrustRatio(OwnOptimizer):
    """Each step is as long as the weights."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def update(self, param, state, group):
        ratio = float(param.norm() / (param.grad.norm() + 1e-12))
        param.sub_(param.grad, alpha=group['lr'] * ratio)


class TrustOfZero(Classify):
    """LAMB: parameters that begin at 0 never move, which is no fault."""

    source = 'cybertronai/pytorch-lamb#6'
    optimizer = dict(type='TrustRatio', lr=5e-2)
    is_healthy = True

    def network(self):
        net = super().network()
        nn.init.zeros_(net[0].bias)
        nn.init.zeros_(net[2].bias)
        return net


@OPTIMIZERS.register_module()
class CountsFromZero(OwnOptimizer):
    """Adam that counts its steps after it has corrected the bias."""

    def __init__(self, params, lr, eps=1e-8):
        super().__init__(params, dict(lr=lr, eps=eps))

    def update(self, param, state, group):
        mean = state.setdefault('mean', torch.zeros_like(param))
        square = state.setdefault('square', torch.zeros_like(param))
        mean.lerp_(param.grad, 0.1)
        square.lerp_(param.grad.square(), 0.01)
        num_steps = state.setdefault('step', torch.tensor(0.0))
        root = (square / (1 - 0.99**num_steps)).sqrt() + group['eps']
        param.sub_(mean / (1 - 0.9**num_steps) / root, alpha=group['lr'])
        num_steps += 1


class FirstCorrectionOfBias(Classify):
    """AdEMAMix divides by 1 - beta ** 0 in its first step.

    A few gradients are 0 as well, behind a ReLU, but not all.
    """

    source = 'nanowell/AdEMAMix-Optimizer-Pytorch#3'
    optimizer = dict(type='CountsFromZero', lr=1e-2)
    must_train = False
    causes = ('step_nonfinite',)
    culprit = 'CountsFromZero'
    says = (r'1 - beta \*\* step with a step of 0',)
    never_says = (*INNOCENT, 'exactly 0', 'add an epsilon')


@OPTIMIZERS.register_module()
class AnnealedDecay(OwnOptimizer):
    """A factor on steps that follows a cosine over ``total`` steps."""

    def __init__(self, params, lr, total):
        super().__init__(params, dict(lr=lr, total=total, done=0, factor=1.0))

    def step(self, closure=None):
        for group in self.param_groups:
            share = torch.tensor(group['done'] / 1.0) / group['total']
            group['factor'] = float((1 + torch.cos(share * torch.pi)) / 2)
            group['done'] += 1
        super().step()

    def update(self, param, state, group):
        param.sub_(param.grad, alpha=group['lr'] * group['factor'])


class AnnealedOverNoSteps(Classify):
    """AdamW's own annealing over a number of steps that is 0."""

    source = 'OverLordGoldDragon/keras-adamw#2'
    optimizer = dict(type='AnnealedDecay', lr=1e-2, total=0)
    must_train = False
    causes = ('step_nonfinite',)
    culprit = 'AnnealedDecay'
    says = ('look where AnnealedDecay computes factor=nan',)
    never_says = (*INNOCENT, 'exactly 0', 'add an epsilon')


@OPTIMIZERS.register_module()
class UnitSteps(OwnOptimizer):
    """Each step is as long as the learning rate."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def update(self, param, state, group):
        param.sub_(param.grad / param.grad.norm(), alpha=group['lr'])


class UnitStepOfNothing(Classify):
    """An optimizer divides by the norm of a gradient that is 0 in one batch.

    All labels of that batch are masked.
    """

    source = 'microsoft/dion#24'
    optimizer = dict(type='UnitSteps', lr=5e-2)
    causes = ('step_nonfinite',)
    culprit = 'UnitSteps'
    says = ('exactly 0', 'was undone')
    never_says = INNOCENT

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['weight'] = torch.tensor(float(self.is_good(index)))
        return sample

    def is_good(self, index):
        return not 48 <= index < 52

    def loss(self, net, batch):
        losses = F.cross_entropy(
            net(batch.inputs), batch.label, reduction='none'
        )
        return (losses * batch.weight).sum() / (batch.weight.sum() + 1e-6)


class RootOfRounding(Regress):
    """Centered RMSprop takes the root of a variance that rounds below 0.

    The gradients of some weights are constant.
    """

    source = 'CanReader/FastNN#12'
    iters = 200
    must_train = False
    optimizer = dict(type='RMSprop', lr=1e-3, alpha=0.9, centered=True)
    causes = ('step_nonfinite',)
    culprit = 'RMSprop'
    says = ('centered=False', 'was undone')
    never_says = ('lower the learning rate', 'leave out sample')

    def network(self):
        net = super().network()
        net.offsets = nn.Parameter(torch.zeros(64))
        return net

    def loss(self, net, batch):
        slopes = torch.linspace(0.001, 0.03, 64)
        return super().loss(net, batch) + (slopes * net.offsets).sum()
