"""Is it malignant? From a CT patch and a table's row, a branch for each."""

import logging
import sys
from contextlib import contextmanager
from typing import Dict, Iterator

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from configs.cases.shared import (
    MadeUpDataset,
    MeasuredNet,
    UnguardedAmpOptimWrapper,
)

CHANNELS = 8
KNOTS = 8


@DATASETS.register_module()
class NoduleDataset(MadeUpDataset):
    """Patches of 12 x 12 in Hounsfield units, -1000 for air to 3000 for metal,
    and six numbers from -1 to 1.
    """

    NAME = 'nodule'

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        table = 2 * torch.rand(size, 6, generator=generator) - 1
        density = torch.rand(size, 1, 1, 1, generator=generator)
        noise = torch.rand(size, 1, 12, 12, generator=generator)
        image = noise * 1000 - 1000
        image[..., 3:9, 3:9] += 1000 + 2000 * density * noise[..., 3:9, 3:9]
        score = 4 * (density.flatten() - 0.5) + table[:, 0].abs() - 0.5
        return dict(image=image, table=table, label=(score > 0).float())


class MSDC(nn.Module):
    """Depthwise convolutions of several sizes, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconvs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    CHANNELS, CHANNELS, size, groups=CHANNELS, bias=False
                ),
                nn.BatchNorm2d(CHANNELS),
                nn.ReLU(),
            )
            for size in (3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x).mean((2, 3)) for conv in self.dwconvs], 1)


class DCFB(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.msdc = MSDC()

    def forward(self, x: Tensor) -> Tensor:
        return self.msdc(x)


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, stride=2)
        self.dcfb3 = DCFB()

    def forward(self, image: Tensor) -> Tensor:
        return self.dcfb3(self.stem(image))


class SplineLayer(nn.Module):
    """A sum of piecewise linear functions of each input, as in a KAN."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer('knots', torch.linspace(-1, 1, KNOTS))
        self.weight = nn.Parameter(
            0.1 * torch.randn(num_inputs * KNOTS, num_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[..., None] - self.knots).abs() * (KNOTS - 1) / 2
        return (1 - distance).relu().flatten(1) @ self.weight


@MODELS.register_module()
class TwoBranchNet(MeasuredNet):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.image_encoder = ImageEncoder()
        self.spline = SplineLayer(6, CHANNELS)
        self.head = nn.Linear(3 * CHANNELS, 1)

    def scores(self, image: Tensor, table: Tensor) -> Tensor:
        both = torch.cat((self.image_encoder(image), self.spline(table)), 1)
        return self.head(both)[:, 0].float()

    def losses(self, image, table, label) -> Dict[str, Tensor]:
        scores = self.scores(image, table)
        return dict(loss=F.binary_cross_entropy_with_logits(scores, label))

    def errors(self, image, table, label) -> Tensor:
        """1 for a wrong class."""
        scores = self.scores(image, table)
        return torch.where(
            scores.isfinite(), ((scores > 0) != label.bool()).float(), scores
        )


class AboveTheBar:
    """A stream whose lines go above tqdm's bar, which then is drawn anew."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout, end='')

    def flush(self) -> None:
        sys.stdout.flush()


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """tqdm's bar, and log lines that it does not garble.

    The guard says all that it has to say through MMEngine's logger, so it is
    enough that the logger's console handler knows of the bar.

    Args:
        is_shared: Is it to know?
    """

    def __init__(self, is_shared: bool = True) -> None:
        self.is_shared = is_shared

    def before_train(self, runner) -> None:
        self.bar = tqdm(total=runner.max_iters, desc='train', ncols=60)
        if self.is_shared:
            for handler in runner.logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setStream(AboveTheBar())

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.bar.update()

    def after_train(self, runner) -> None:
        self.bar.close()


@MODELS.register_module()
class CleaningPreprocessor(BaseDataPreprocessor):
    """The report's first cure: inputs without NaN and Inf."""

    def forward(self, data: dict, training: bool = False) -> dict:
        data = super().forward(data, training)
        inputs = {k: v.nan_to_num() for k, v in data['inputs'].items()}
        return dict(data, inputs=inputs)


@OPTIM_WRAPPERS.register_module()
class LoopOptimWrapper(UnguardedAmpOptimWrapper):
    """The report's loop: a batch whose loss is not finite is left out before
    backward, one whose gradient norm is not finite after it.
    """

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        if loss.isfinite():
            super().update_params(loss, *args, **kwargs)

    def step(self, **kwargs) -> None:
        params = [p for g in self.optimizer.param_groups for p in g['params']]
        if nn.utils.clip_grad_norm_(params, 5.0).isfinite():
            super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class ReloadingOptimWrapper(UnguardedAmpOptimWrapper):
    """Someone who starts anew after a bad step: with the good weights and
    buffers of before it, in bfloat16, and with the optimizer as it is.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self.model = model
        self.good = {k: v.clone() for k, v in model.state_dict().items()}
        with super().optim_context(model):
            yield

    def step(self, **kwargs) -> None:
        super().step(**kwargs)
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self.model.load_state_dict(self.good)
            self.cast_dtype = torch.bfloat16
