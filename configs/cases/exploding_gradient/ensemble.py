"""Two models whose features are multiplied: an ensemble that can explode.

One sees a sequence's features, the other simulated ones. Nothing keeps the
product of the two small: weights that grow make gradients that grow faster.
"""

from typing import Dict

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from configs.cases.shared import MadeUpDataset, MeasuredNet


@DATASETS.register_module()
class SimulatedDataset(MadeUpDataset):
    """Two groups of features of unit variance, and a class.

    The simulated features of a spoilt sample are 36 times too large, as those
    of a simulation that did not converge.
    """

    NAME = 'simulated'

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        sequence = torch.randn(size, 16, generator=generator)
        simulated = torch.randn(size, 8, generator=generator)
        mixing = torch.randn(16, 8, generator=Generator().manual_seed(0))
        score = sequence[:, :8].sum(dim=1) + simulated.sum(dim=1)
        score = score + 0.1 * (sequence @ mixing * simulated).sum(dim=1)
        simulated[self.spoilt] *= 36
        return dict(
            sequence=sequence, simulated=simulated, label=(score > 0).float()
        )


@MODELS.register_module()
class EnsembleNet(MeasuredNet):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.sequence_model = self.make_model(16)
        self.simulated_model = self.make_model(8)
        self.head = nn.Linear(16, 1)

    def make_model(self, num_features: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(num_features, 32), nn.ReLU(), nn.Linear(32, 16)
        )

    def scores(self, sequence: Tensor, simulated: Tensor) -> Tensor:
        product = self.sequence_model(sequence) * self.simulated_model(
            simulated
        )
        return self.head(product)[:, 0]

    def losses(self, sequence, simulated, label) -> Dict[str, Tensor]:
        scores = self.scores(sequence, simulated)
        return dict(loss=F.binary_cross_entropy_with_logits(scores, label))

    def errors(self, sequence, simulated, label) -> Tensor:
        """1 for a wrong class."""
        scores = self.scores(sequence, simulated)
        return torch.where(
            scores.isfinite(), ((scores > 0) != label.bool()).float(), scores
        )


@OPTIM_WRAPPERS.register_module()
class ReportedOptimWrapper(OptimWrapper):
    """The report's loop: a check of the gradients, tiers with the halved
    learning rate, and a check of the weights after the step.

    Args:
        has_tiers: Without them the checks are alone.
    """

    def __init__(self, *args, has_tiers: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.has_tiers = has_tiers

    def step(self, **kwargs) -> None:
        params = [p for g in self.optimizer.param_groups for p in g['params']]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        if not norm.isfinite():
            return
        if self.has_tiers:
            max_norm = 5.0 if norm > 10 else 2.0 if norm > 5 else 1.0
            nn.utils.clip_grad_norm_(params, max_norm)
            if norm > 10:
                for group in self.optimizer.param_groups:
                    group['lr'] *= 0.5
        self.optimizer.step(**kwargs)
        if not all(p.isfinite().all() for p in params):
            print_log('bad weights, on with the next batch', 'current')
