"""Trainings of mmpretrain's models whose forward changes parameters.

Each model is trained with faults and again with those updates left out. The
script prints the names of tensors that differ, and of tensors that forward
changed.
"""

import json
import math

import mmpretrain.models  # noqa: F401  (registers)
import torch
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS

from mmnanguard.optim import NanGuardOptimWrapper

STRUCK = (1, 5)  # while parameters are still compared, and afterwards
BACKBONE = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
NECK = dict(
    type='NonLinearNeck',
    in_channels=32,
    hid_channels=8,
    out_channels=8,
    num_layers=2,
    with_last_bn=False,
    with_avg_pool=True,
)
CONFIGS = dict(
    moco=dict(
        type='MoCo',
        queue_len=16,
        feat_dim=8,
        momentum=0.1,
        neck=dict(
            type='MoCoV2Neck',
            in_channels=32,
            hid_channels=8,
            out_channels=8,
            with_avg_pool=True,
        ),
        head=dict(
            type='ContrastiveHead',
            loss=dict(type='CrossEntropyLoss'),
            temperature=0.2,
        ),
    ),
    byol=dict(
        type='BYOL',
        base_momentum=0.1,
        neck=NECK,
        head=dict(
            type='LatentPredictHead',
            loss=dict(type='CosineSimilarityLoss'),
            predictor=dict(NECK, in_channels=8, with_avg_pool=False),
        ),
    ),
    swav=dict(
        type='SwAV',
        neck=dict(
            type='SwAVNeck',
            in_channels=32,
            hid_channels=8,
            out_channels=8,
            with_avg_pool=True,
        ),
        head=dict(
            type='SwAVHead',
            loss=dict(type='SwAVLoss', feat_dim=8, num_prototypes=4),
        ),
    ),
)


def train(name, faults=(), left_out=()):
    torch.manual_seed(0)
    model = MODELS.build(dict(CONFIGS[name], backbone=BACKBONE))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapper = NanGuardOptimWrapper(optimizer)
    changed = set()
    generator = torch.Generator().manual_seed(1)
    for number in range(1, 8):
        views = torch.randn(2, 4, 3, 32, 32, generator=generator)
        if number in faults:
            views[0, 1] = math.nan
        if number in left_out:
            continue
        torch.manual_seed(number)  # MoCo shuffles
        before = {key: p.clone() for key, p in model.named_parameters()}
        with wrapper.optim_context(model):
            loss = model.loss(list(views), [])['loss']
        changed |= {
            key
            for key, p in model.named_parameters()
            if not torch.equal(p, before[key])
        }
        wrapper.update_params(loss)
    tensors = dict(model.state_dict())
    for index, state in optimizer.state_dict()['state'].items():
        tensors[f'momentum {index}'] = state['momentum_buffer']
    return tensors, wrapper.guard.state.total_skips, sorted(changed)


def main():
    hub = MessageHub.get_current_instance()  # BYOL's momentum asks for it
    hub.update_info('max_iters', 7)
    results = {}
    for name in CONFIGS:
        faulty, num_skips, changed = train(name, faults=STRUCK)
        clean, _, _ = train(name, left_out=STRUCK)
        differ = [
            key
            for key in clean
            if not torch.equal(
                clean[key].reshape(-1).view(torch.uint8),
                faulty[key].reshape(-1).view(torch.uint8),
            )
        ]
        results[name] = dict(
            differ=differ, num_skips=num_skips, changed=changed
        )
    print(json.dumps(results))


if __name__ == '__main__':
    main()
