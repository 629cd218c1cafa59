"""Segmentation of small images with a Swin-like backbone."""

from contextlib import contextmanager
from typing import Dict, Iterator

import torch
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from configs.cases.shared import (
    MadeUpDataset,
    MeasuredNet,
    UnguardedAmpOptimWrapper,
)

CHANNELS = 16
PATCH = 4  # in pixels, as the images are 16 x 16


@DATASETS.register_module()
class GlareDataset(MadeUpDataset):
    """A bright disc on a dark ground, in raw pixels from 0 to 255.

    The spoilt ones are frames with glare: exposed 120 times as long, the last
    one 12 times, in a format that does not saturate.
    """

    NAME = 'frame'

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        centre = 4 + 8 * torch.rand(size, 2, 1, 1, generator=generator)
        grid = torch.stack(
            torch.meshgrid(*[torch.arange(16.0)] * 2, indexing='ij')
        )
        label = ((grid - centre).norm(dim=1) < 4).long()
        noise = torch.rand(size, 3, 16, 16, generator=generator)
        image = 105 * noise + 150 * label[:, None]
        exposure = torch.linspace(120, 12, len(self.spoilt))
        image[self.spoilt] *= exposure[:, None, None, None]
        return dict(image=image, label=label)


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.projection(image).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention in one window, and an MLP; both after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.norm2 = nn.LayerNorm(CHANNELS)
        self.ffn = nn.Sequential(
            nn.Linear(CHANNELS, 2 * CHANNELS),
            nn.GELU(),
            nn.Linear(2 * CHANNELS, CHANNELS),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(tokens)).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) / CHANNELS**0.5
        tokens = tokens + self.proj(scores.softmax(dim=-1) @ value)
        return tokens + self.ffn(self.norm2(tokens))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.block = Block()

    def forward(self, image: Tensor) -> Tensor:
        return self.block(self.patch_embed(image))


@MODELS.register_module()
class SwinLikeSegmentor(MeasuredNet):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.backbone = Backbone()
        self.decode_head = nn.Linear(CHANNELS, 2 * PATCH * PATCH)

    def scores(self, image: Tensor) -> Tensor:
        tokens = self.decode_head(self.backbone(image))
        side = image.shape[-1] // PATCH
        patches = tokens.transpose(1, 2).unflatten(2, (side, side))
        return F.pixel_shuffle(patches, PATCH).float()

    def losses(self, image: Tensor, label: Tensor) -> Dict[str, Tensor]:
        return dict(loss_seg=F.cross_entropy(self.scores(image), label))

    def errors(self, image: Tensor, label: Tensor) -> Tensor:
        """Share of wrong pixels."""
        is_wrong = self.scores(image).argmax(dim=1) != label
        return is_wrong.float().mean(dim=(1, 2))


@OPTIM_WRAPPERS.register_module()
class CheckingAmpOptimWrapper(UnguardedAmpOptimWrapper):
    """Ends the run at a NaN gradient, as the report's project did.

    It looks where a 1.x runner lets one look: after clipping.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self.params = dict(model.named_parameters())
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        super()._clip_grad()
        for name, param in self.params.items():
            if param.grad.isnan().any():
                raise RuntimeError(f"the gradient of '{name}' is NaN")
