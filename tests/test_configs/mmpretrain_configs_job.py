"""Guards every config that mmpretrain ships, and builds its optimizer wrapper.

A wrapper's settings are built once, for the model of the first config that has
them, whose parameters take no memory; with further guards for a stand-in.
Prints JSON: by outcome the configs, and the number of different settings.
"""

import json
import logging
import sys
from collections import defaultdict
from pathlib import Path

import mmpretrain.engine
import mmpretrain.models  # noqa: F401  (registers)
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.registry import MODELS
from torch import nn
from torch.overrides import TorchFunctionMode

from mmnanguard import apply_guard
from mmnanguard.core import GuardConfigError
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper
from mmnanguard.optim.deepspeed.guard_config import has_deepspeed

CONFIGS = Path(sys.prefix, 'mmpretrain', 'mmpretrain', '.mim', 'configs')
TYPES = dict(
    fp16=NanGuardAmpOptimWrapper,
    bf16=NanGuardAmpOptimWrapper,
    fp32=NanGuardOptimWrapper,
    full=None,  # the one of the config's precision
)
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)


class Hollow(TorchFunctionMode):
    """A mode in which new tensors have no memory, but computed numbers do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in FACTORIES and kwargs.get('device') is None:
            kwargs['device'] = 'meta'
        return func(*args, **kwargs)


class StandIn(nn.Module):
    """A small model with a parameter of each kind that paramwise_cfg knows."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, groups=1), nn.BatchNorm2d(4), nn.LayerNorm(4)
        )
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 2)

    def get_layer_depth(self, param_name):
        return 0, 2


def build_guarded(cfg):
    """Build the config with each guard; print which model it was built on."""
    if has_deepspeed(cfg):
        # The wrapper needs an engine.
        for guard in TYPES:
            settings = apply_guard(cfg, guard).optim_wrapper
            assert settings.type == 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
        return 'guarded, with DeepSpeed'
    try:
        with Hollow():
            model, outcome = MODELS.build(cfg.model), 'its own model'
    except Exception as error:  # of mmpretrain's
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        model, outcome = StandIn(), 'a stand-in'
    for guard, type_ in TYPES.items():
        settings = apply_guard(cfg, guard).optim_wrapper
        wrapper = build_optim_wrapper(model, settings)
        assert f'mmnanguard.{type(wrapper).__name__}' == settings.type
        if type_ is not None:
            assert type(wrapper) is type_
        assert settings_of(wrapper) == settings_of(mmengines_own(cfg, model))
        model = StandIn()
    return f'guarded, on {outcome}'


def mmengines_own(cfg, model):
    """Return MMEngine's wrapper of the model, in float32, which a CPU
    supports.
    """
    settings = dict(cfg.optim_wrapper, type='OptimWrapper')
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        settings.pop(key, None)
    return build_optim_wrapper(model, settings)


def settings_of(wrapper):
    """Return everything in a wrapper that its settings determine."""
    groups = [
        dict(group, params=[param.shape for param in group['params']])
        for group in wrapper.param_groups
    ]
    clip = wrapper.clip_grad_kwargs
    counts = wrapper._accumulative_counts
    return type(wrapper.optimizer), groups, clip, counts


def refuse_downloads(filename, *args, **kwargs):
    raise OSError(f'{filename} would be downloaded')


def main():
    logging.disable(logging.WARNING)
    DefaultScope.get_instance('configs', scope_name='mmpretrain')
    CheckpointLoader.load_checkpoint = staticmethod(refuse_downloads)
    outcomes, known = defaultdict(list), {}
    files = sorted(CONFIGS.rglob('*.py'))
    for file in files:
        name = str(file.relative_to(CONFIGS))
        if '_base_' in name:
            continue
        try:
            cfg = Config.fromfile(str(file))
        except Exception as error:
            outcomes[f'MMEngine: {type(error).__name__}: {error}'].append(name)
            continue
        try:
            apply_guard(cfg)
        except GuardConfigError as error:
            outcomes[f'refused: {error}'].append(name)
            continue
        settings = str(cfg.optim_wrapper)
        if settings not in known:
            known[settings] = build_guarded(cfg)
        outcomes[known[settings]].append(name)
    print(json.dumps(dict(outcomes=outcomes, num_settings=len(known))))


if __name__ == '__main__':
    main()
