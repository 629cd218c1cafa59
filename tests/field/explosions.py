"""Reports of runs whose numbers grew until nothing was left."""

import torch
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Regress

EXPLODED = ('loss_nonfinite', 'grad_nonfinite', 'norm_overflow')


class RecurrentNet(nn.Module):
    """A recurrent net whose state doubles within a sequence."""

    def __init__(self):
        super().__init__()
        self.state = nn.Linear(6, 6)
        self.state.weight.data.copy_(1.05 * torch.eye(6))
        self.inputs = nn.Linear(2, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs):
        state = torch.zeros(len(inputs), 6)
        for step in inputs.unbind(1):
            state = F.relu(self.state(state) + self.inputs(step))
        return self.head(state)


class RecurrentUnclipped(Scenario):
    """A recurrent net without clipping explodes in its first step."""

    source = 'keras-team/keras#5127'
    must_train = False
    optimizer = dict(type='SGD', lr=0.2)
    causes = EXPLODED
    says = (r'max_norm=1\), which is a convention', 'lower the learning rate')
    never_says = ('the usual norm', 'leave out sample')

    def network(self):
        return RecurrentNet()

    def sample(self, index, generator):
        inputs = torch.randn(20, 2, generator=generator)
        return dict(inputs=inputs, target=inputs.sum(0)[:1])

    def loss(self, net, batch):
        return F.mse_loss(net(batch.inputs), batch.target)


class UnscaledSensors(Regress):
    """Sensors with values of thousands, under a squared loss."""

    source = 'austineaero/Remaining-Useful-Life-RUL-Estimation#19'
    must_train = False
    optimizer = dict(type='SGD', lr=1e-2)
    causes = EXPLODED
    says = (r'max_norm=1\), which is a convention', 'normalize inputs')
    never_says = ('the usual norm', 'leave out sample')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['inputs'] = 800 * sample['inputs'] + 5000
        return sample

    def loss(self, net, batch):
        return F.mse_loss(net(batch.inputs), batch.target)


class RawTimestamps(Scenario):
    """A feature in seconds since 1970: the loss is huge, but never NaN."""

    source = 'coreylynch/pyFM#44'
    must_train = False
    says = ('the loss has exploded', 'normalize the inputs')
    never_says = ('healthy', 'leave out sample')

    def network(self):
        return nn.Linear(4, 1)

    def sample(self, index, generator):
        inputs = torch.randn(4, generator=generator)
        label = (inputs[:1] > 0).float()
        inputs[3] = 1.6e9 + 1e5 * inputs[3]
        return dict(inputs=inputs, label=label)

    def loss(self, net, batch):
        logits = net(batch.inputs)
        return F.binary_cross_entropy_with_logits(logits, batch.label)
