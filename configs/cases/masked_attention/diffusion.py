"""Text as images of tokens, and a transformer that takes the noise out.

A token's id is written as a colour, in three digits to the base of 256.
"""

from typing import Dict

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS
from torch import Generator, Tensor, nn

from configs.cases.shared import MadeUpDataset, MeasuredNet
from mmnanguard import watch
from mmnanguard.models import SafeAdaLNZero, SafeAttention
from mmnanguard.numerics.safe_ops import masked_mean

VOCAB_SIZE = 151643
LENGTH = 24  # tokens of a sample, padding included
CHANNELS = 32
HEADS = 4


@DATASETS.register_module()
class TokenDataset(MadeUpDataset):
    """Texts of 8 to 24 tokens, each with noise and a time to take it out at.

    Of the spoilt ones, all but the last are empty: nothing but padding. The
    last one has a token that is none, 2**24 + 42, whose colour is that of 42.
    """

    NAME = 'text'

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        length = torch.randint(8, LENGTH + 1, (size, 1), generator=generator)
        first = torch.randint(VOCAB_SIZE, (size, 1), generator=generator)
        tokens = (first + 4096 * torch.arange(LENGTH)) % VOCAB_SIZE
        if self.spoilt:
            length[self.spoilt[:-1]] = 0
            tokens[self.spoilt[-1], 3] = 2**24 + 42
        mask = torch.arange(LENGTH) < length
        noise = torch.randn(size, LENGTH, 3, generator=generator)
        time = torch.rand(size, 1, generator=generator)
        return dict(tokens=tokens * mask, mask=mask, noise=noise, time=time)


class ReportedRMSNorm(nn.Module):
    """As in the report, and as it wants it mended."""

    def __init__(self, is_mended: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.is_mended = is_mended

    def forward(self, x: Tensor) -> Tensor:
        if self.is_mended:
            x = torch.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6)
        norm = x.norm(dim=-1, keepdim=True) * CHANNELS**-0.5
        norm = norm.clamp(min=1e-6) if self.is_mended else norm + 1e-6
        return x / norm * self.weight


class AdaLNZero(nn.Module):
    def __init__(self, is_mended: bool) -> None:
        super().__init__()
        self.norm = ReportedRMSNorm(is_mended)
        self.shift = nn.Linear(CHANNELS, CHANNELS)
        self.scale = nn.Linear(CHANNELS, CHANNELS)
        for layer in (self.shift, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale = self.scale(cond) + 1
        return self.norm(x) * scale[:, None] + self.shift(cond)[:, None]


class Attention(nn.Module):
    """As in the report, and as it wants it mended."""

    def __init__(self, is_mended: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.is_mended = is_mended

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attn = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        attn = attn.masked_fill(~mask[:, None, None], float('-inf'))
        if self.is_mended and (attn == float('-inf')).all():
            attn = torch.zeros_like(attn)
        else:
            attn = attn.softmax(dim=-1)
        return self.proj((attn @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, is_safe: bool, mended: str) -> None:
        super().__init__()
        self.is_safe = is_safe
        if is_safe:
            self.norm = SafeAdaLNZero(CHANNELS, CHANNELS)
            self.attn = SafeAttention(CHANNELS, HEADS)
        else:
            self.norm = AdaLNZero(mended == 'norm')
            self.attn = Attention(mended == 'mask')

    def forward(self, x: Tensor, cond: Tensor, mask: Tensor) -> Tensor:
        if self.is_safe:
            normed, gate = self.norm(x, cond)
            return x + gate * self.attn(normed, mask)
        return x + self.attn(self.norm(x, cond), mask)


@MODELS.register_module()
class TokenDenoiser(MeasuredNet):
    """Two blocks between two linear layers.

    Args:
        is_safe: Use mmnanguard's layers and mean.
        mended: What the report's way is used for: 'norm' or 'mask'.
    """

    def __init__(
        self, is_safe: bool = False, mended: str = '', **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.is_safe = is_safe
        self.embed = nn.Linear(3, CHANNELS)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, CHANNELS))
        self.time = nn.Linear(1, CHANNELS)
        self.blocks = nn.ModuleList(Block(is_safe, mended) for _ in range(2))
        self.norm = ReportedRMSNorm(mended == 'norm')
        self.head = nn.Linear(CHANNELS, 3)

    def denoise(self, tokens, mask, noise, time):
        """Colours, and what they are taken for."""
        digits = torch.stack((tokens, tokens // 256, tokens // 65536), dim=-1)
        clean = digits % 256 / 255
        noisy = (1 - time[:, None]) * clean + time[:, None] * noise
        x, cond = self.embed(noisy) + self.place, self.time(time)
        for block in self.blocks:
            x = block(x, cond, mask)
        return clean, watch('prediction', self.head(self.norm(x)))

    def losses(self, tokens, mask, noise, time) -> Dict[str, Tensor]:
        clean, prediction = self.denoise(tokens, mask, noise, time)
        difference = (prediction - clean).square().mean(dim=-1)
        if self.is_safe:
            return dict(loss=masked_mean(difference, mask))
        return dict(loss=(difference * mask).sum() / (mask.sum() + 1e-8))

    def errors(self, tokens, mask, noise, time) -> Tensor:
        clean, prediction = self.denoise(tokens, mask, noise, time)
        return masked_mean((prediction - clean).square().mean(-1), mask, -1)


@OPTIM_WRAPPERS.register_module()
class SkippingOptimWrapper(OptimWrapper):
    """The report's loop: a batch whose output is not finite is left out.

    Of a loss that is finite, bad gradients are set to zero, and it steps.
    """

    def __init__(self, *args, checks_loss: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.checks_loss = checks_loss

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        if loss.isfinite() or not self.checks_loss:
            super().update_params(loss, *args, **kwargs)

    def step(self, **kwargs) -> None:
        for group in self.optimizer.param_groups:
            for param in group['params']:
                if not param.grad.isfinite().all():
                    param.grad.zero_()
        super().step(**kwargs)
