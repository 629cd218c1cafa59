"""Reports from 3D detection and geometry."""

import torch
from torch import nn
from torch.nn import functional as F

from .tasks import Regress


class UnmaskedVelocity(Regress):
    """One scene with unknown velocities, and a head that does not mask."""

    source = 'V2AI/Det3D#10'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'048\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 48:
            sample['target'][2:] = float('nan')
        return sample

    def is_good(self, index):
        return index != 48


class HeadingOfZero(Regress):
    """A heading by the arc tangent of a quotient: 0/0 in an empty scene."""

    source = 'tensorflow/tensorflow#6095'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|009\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Linear(8, 2, bias=False)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 9:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 9

    def loss(self, net, batch):
        sine, cosine = net(batch.inputs).unbind(1)
        heading = (sine / cosine).atan()
        wanted = (batch.target[:, 0] / batch.target[:, 1]).atan()
        return (1 - (heading - wanted).cos()).mean()


class RotationByNothing(Regress):
    """acos(1) is 0, but its gradient is Inf, and Inf * 0 is NaN."""

    source = 'facebookresearch/pytorch3d#189'
    causes = ('grad_nonfinite',)
    culprit = r'acos|026\.jpg'
    never_says = ('lower the learning rate', 'lower optim_wrapper.loss_scale')

    def network(self):
        return nn.Linear(8, 4)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_same'] = torch.tensor(index == 26)
        return sample

    def is_good(self, index):
        return index != 26

    def loss(self, net, batch):
        axis = F.normalize(net(batch.inputs), dim=1)
        wanted = F.normalize(batch.target, dim=1)
        cosine = (axis * wanted).sum(1) * 0.99
        cosine = torch.where(batch.is_same, cosine * 0 + 1, cosine)
        return cosine.acos().mean()


class PointsAtInfinity(Regress):
    """A lidar file whose lost returns are Inf."""

    source = 'traveller59/second.pytorch#144'
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'055\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 55:
            sample['inputs'][0] = float('inf')
        return sample

    def is_good(self, index):
        return index != 55


class PaddedAtoms(Regress):
    """Distances of padded atoms are 0; they are masked after the root.

    Their gradient is 0 * Inf, so that the mask comes too late.
    """

    source = 'atomistic-machine-learning/schnetpack#87'
    causes = ('grad_nonfinite',)
    culprit = r'sqrt'
    says_in_full = ('sqrt',)
    never_says = ('lower the learning rate', 'lower optim_wrapper.loss_scale')

    def network(self):
        return nn.Linear(8, 4, bias=False)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 33:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 33

    def loss(self, net, batch):
        distance = net(batch.inputs).square().sum(1).sqrt()
        is_atom = batch.inputs.abs().sum(1) > 0
        distance = torch.where(is_atom, distance, torch.zeros(()))
        return (distance - batch.target.abs().mean(1)).square().mean()


class BrokenDescriptor(Regress):
    """Descriptors are divided by their maximum, which is 0 in a dark image."""

    source = 'mihaidusmanu/d2-net#78'
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div|061\.jpg'
    never_says = ('lower the learning rate',)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 61:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 61

    def loss(self, net, batch):
        image = batch.inputs.abs()
        scores = image / image.max(1, keepdim=True).values
        return F.smooth_l1_loss(net(scores), batch.target)
