"""Two small tasks that scenarios build on."""

from torch import nn, randn
from torch.nn import functional as F

from .scenario import Scenario


class Classify(Scenario):
    """Tell which of the first three of eight numbers is the largest."""

    def network(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def sample(self, index, generator):
        inputs = randn(8, generator=generator)
        return dict(inputs=inputs, label=inputs[:3].argmax())

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs), batch.label)


class Regress(Scenario):
    """Predict four numbers that depend linearly on eight others."""

    def network(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def sample(self, index, generator):
        inputs = randn(8, generator=generator)
        return dict(inputs=inputs, target=inputs[:4] - inputs[4:] + 1)

    def loss(self, net, batch):
        return F.smooth_l1_loss(net(batch.inputs), batch.target)
