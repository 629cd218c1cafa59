"""An MMEngine config with safe layers survives a batch that ends a run with
plain layers.
"""

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from toys import (
    BATCH_SIZE,
    assert_finite,
    everything,
    guard_hooks,
    loader,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.numerics import masked_mean

DIMS = 8
NUM_ITERS = 6
EMPTY = 2, 4  # iterations that have a sample without a single token
SAFE = dict(
    norm_cfg=dict(type='mmnanguard.SafeRMSNorm'),
    attn_cfg=dict(type='mmnanguard.SafeAttention'),
)
PLAIN = dict(
    norm_cfg=dict(type='HandMadeRMSNorm'),
    attn_cfg=dict(type='HandMadeAttention'),
)


@MODELS.register_module()
class HandMadeRMSNorm(nn.Module):
    def __init__(self, num_features, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.eps = eps

    def forward(self, x):
        norm = x.square().mean(-1, keepdim=True).sqrt()
        return x / (norm + self.eps) * self.weight


@MODELS.register_module()
class HandMadeAttention(BaseModule):
    def __init__(self, embed_dims, num_heads):
        super().__init__()
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.num_heads = num_heads

    def forward(self, x, mask):
        parts = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * query.size(-1) ** -0.5
        scores = scores.masked_fill(~mask[:, None, None], float('-inf'))
        out = scores.softmax(-1) @ value
        return self.proj(out.transpose(1, 2).flatten(2))


@MODELS.register_module()
class TokenNet(BaseModel):
    def __init__(self, norm_cfg, attn_cfg):
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, DIMS)[1]
        keys = dict(embed_dims=DIMS, num_heads=2)
        self.attention = MODELS.build({**attn_cfg, **keys})
        self.head = nn.Linear(DIMS, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        tokens = torch.stack(list(inputs))
        mask = torch.stack([sample.mask for sample in data_samples])
        tokens = tokens + self.attention(self.norm(tokens), mask)
        scores = self.head(masked_mean(tokens, mask.unsqueeze(-1), 1))
        labels = torch.tensor([sample.label for sample in data_samples])
        return dict(loss=nn.functional.cross_entropy(scores, labels))


def train(work_dir, layers, type_='NanGuardOptimWrapper', empty=EMPTY):
    items, generator = [], torch.Generator().manual_seed(1)
    for index in range(NUM_ITERS * BATCH_SIZE):
        tokens = torch.randn(5, DIMS, generator=generator)
        mask = torch.arange(5) < 2 + index % 4
        if index // BATCH_SIZE + 1 in empty and index % BATCH_SIZE == 0:
            mask = torch.zeros(5, dtype=torch.bool)
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        sample = BaseDataElement(label=index % 2, mask=mask)
        items.append(dict(inputs=tokens, data_samples=sample))
    keys = dict(dtype='float16', loss_scale=64.0) if 'Amp' in type_ else {}
    runner = make_runner(
        work_dir,
        wrapper(type_, lr=0.05, **keys),
        model=dict(type='TokenNet', **layers),
        train_dataloader=loader(items),
        max_iters=NUM_ITERS,
        default_hooks=guard_hooks(),
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    'type_', ['NanGuardOptimWrapper', 'NanGuardAmpOptimWrapper']
)
def test_no_event_where_the_plain_layers_lose_updates(tmp_path, type_):
    safe = train(tmp_path / 'safe', SAFE, type_)
    plain = train(tmp_path / 'plain', PLAIN, type_)

    assert read_rows(safe) == []
    assert safe.optim_wrapper.guard.state.num_steps == NUM_ITERS
    assert_finite(safe)
    rows = read_rows(plain)
    # Its padding of zeros has a NaN gradient in the norm everywhere else, too.
    assert {row['iter'] for row in rows} >= set(EMPTY)
    assert {row['action'] for row in rows} == {'skip'}


def test_trains_as_the_plain_layers_do_on_tokens_without_padding(tmp_path):
    """The data has no row of zeros, for which the plain norm has a NaN
    gradient.
    """
    runs = [
        train(tmp_path / str(index), layers, empty=())
        for index, layers in enumerate((SAFE, dict(PLAIN, **NO_ZEROS)))
    ]
    for (name, safe), plain in zip(
        everything(runs[0]).items(), everything(runs[1]).values()
    ):
        assert torch.allclose(safe, plain, atol=1e-5), name


NO_ZEROS = dict(norm_cfg=SAFE['norm_cfg'])
