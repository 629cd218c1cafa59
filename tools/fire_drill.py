"""Rehearse the bad day: what would faults do to this job?

Any mm config will do, once it has a FaultInjectionHook. The job runs three
times, each in a folder of its own: guarded with the faults, guarded without
them, and with the faults under MMEngine's own wrapper. Exit status 1: a
guarded run crashed or ended with non-finite weights, or the guard saw nothing
of a fault (finite values excepted, which may do no harm).

Example:
    python tools/fire_drill.py configs/digits/drill_fp16.py
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ('iter', 'site', 'value', 'action', 'cause', 'blamed')


def find(node, key):
    """Each dict at or below a node that has this key."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return []
    if key in node:
        return [node]
    return [each for value in node.values() for each in find(value, key)]


def unguard(cfg):
    """The config under MMEngine's own wrapper, and that wrapper's name."""
    from mmnanguard.registry import HOOKS

    cfg, name = copy.deepcopy(cfg), 'OptimWrapper'
    for wrapper in find(cfg.optim_wrapper, 'optimizer'):
        kinds, name = [OptimWrapper], 'OptimWrapper'
        if str(wrapper.type).endswith('AmpOptimWrapper'):
            if get_device() in ('cuda', 'npu', 'mlu', 'musa'):
                kinds, name = [*kinds, AmpOptimWrapper], 'AmpOptimWrapper'
            else:
                name += ' in fp32 (AmpOptimWrapper needs a GPU)'
        taken = ['constructor', 'paramwise_cfg']
        taken += [key for kind in kinds for key in signature(kind).parameters]
        for key in set(wrapper) - set(taken):
            del wrapper[key]
        clip = wrapper.get('clip_grad') or {}
        if clip.get('type', 'norm') not in ('norm', 'value'):
            del wrapper['clip_grad']
        wrapper['type'] = kinds[-1].__name__
    ours = set(HOOKS.module_dict) - {'FaultInjectionHook'}
    hooks = dict(cfg.get('default_hooks', {}))
    ...
