"""Pure Python configs: classes as types, read_base(), the other runner."""

import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from torch.optim import SGD

from mmnanguard import apply_guard
from tools.train import main

DOCS = Path(__file__).parents[2] / 'docs' / 'en' / 'stacks.md'
BASE = """
from mmengine.dataset import DefaultSampler
from mmengine.hooks import LoggerHook
from mmengine.optim import OptimWrapper
from toys import ToyData, ToyNet
from torch.optim import SGD

default_scope = 'mmengine'
env_cfg = dict()
model = dict(type=ToyNet)
train_dataloader = dict(
    dataset=dict(type=ToyData, size=24), batch_size=4, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
default_hooks = dict(logger=dict(type=LoggerHook, interval=3))
"""
HALF = """
from mmengine.config import read_base
from mmnanguard.optim import NanGuardAmpOptimWrapper
with read_base():
    from .base import *
optim_wrapper.update(
    type=NanGuardAmpOptimWrapper, dtype='float16', loss_scale=64)
"""
FAULT = (
    'default_hooks.drill.type=mmnanguard.FaultInjectionHook',
    'default_hooks.drill.faults.0.iter=3',
    'default_hooks.drill.faults.0.site=grad',
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'half.py').write_text(HALF)
    text = next(
        block
        for block in re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.S)
        if 'read_base' in block
    )
    (tmp_path / 'full.py').write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'guard', 'options'),
    [
        (
            'half',
            None,
            [
                'default_hooks.log.type=mmnanguard.EventLogHook',
                'default_hooks.guard.type=mmnanguard.NanGuardHook',
            ],
        ),
        ('full', None, []),
        ('base', 'fp16', ['optim_wrapper.loss_scale=64']),
        ('base', 'fp32', ['runner_type=FlexibleRunner']),
    ],
)
def test_it_is_trained(folder, name, guard, options):
    work_dir = folder / 'work_dir'
    command = [str(folder / f'{name}.py'), '--work-dir', str(work_dir)]
    if guard:
        command += ['--guard', guard]
    assert main([*command, '--cfg-options', *options, *FAULT]) == 0
    (log,) = work_dir.glob('*/nanguard/events.jsonl')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    updates = [row for row in rows if row['kind'] == 'update']
    assert [(row['iter'], row['action']) for row in updates] == [(3, 'skip')]


def test_the_guarded_config_is_one_that_mmengine_can_write(folder):
    cfg = apply_guard(Config.fromfile(folder / 'base.py'), 'fp16')
    assert cfg.optim_wrapper.type == 'mmnanguard.NanGuardAmpOptimWrapper'
    assert cfg.optim_wrapper.optimizer.type is SGD
    cfg.dump(folder / 'written.py')
    again = Config.fromfile(folder / 'written.py')
    assert again.optim_wrapper.dtype == 'float16'
