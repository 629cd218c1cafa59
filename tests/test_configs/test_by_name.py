"""Guards have names, and configs of other projects a guarded child."""

import inspect
import re
import sys
from pathlib import Path

import pytest
from beside_mmpretrain import PACKAGES, needs_mmpretrain
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import is_installed
from toys import make_runner, read_rows

from mmnanguard import apply_guard
from mmnanguard.core import GuardConfigError
from mmnanguard.read_config import read_config

ROOT = Path(__file__).parents[2]
GUARDS = sorted((ROOT / 'configs' / 'guards').glob('*.py'))
BASES = """
_base_ = ['mmnanguard::guards/fp32.py', 'mmnanguard::digits/base.py']
"""


def example(number):
    text = (ROOT / 'docs' / 'en' / 'stacks.md').read_text()
    return re.findall(r'```python\n(.*?)```', text, re.S)[number]


def load(folder, text):
    path = folder / 'config.py'
    path.write_text(text)
    return Config.fromfile(path)


@pytest.mark.parametrize('path', GUARDS, ids=lambda path: path.stem)
def test_a_guard_by_its_name(path):
    cfg = get_config(f'mmnanguard::guards/{path.name}')
    assert cfg.to_dict() == Config.fromfile(path).to_dict()


def test_a_guard_as_a_base(tmp_path):
    cfg = load(tmp_path, example(2))
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    faults = [dict(iter=3, site='grad')]
    runner = make_runner(
        tmp_path / 'work_dir',
        cfg.optim_wrapper,
        default_hooks=dict(
            cfg.default_hooks,
            drill=dict(type='mmnanguard.FaultInjectionHook', faults=faults),
        ),
    )
    runner.train()
    assert read_rows(runner)[-1]['iter'] == 3


def test_two_bases_that_define_the_same_are_refused(tmp_path):
    """MMEngine refuses them; docs/en/stacks.md says what to do instead."""
    with pytest.raises(KeyError, match=r'Duplicate key.*optim_wrapper'):
        load(tmp_path, BASES)


@needs_mmpretrain
def test_a_child_of_another_projects_config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PACKAGES)
    text = example(0)
    cfg = load(tmp_path, text)
    base = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    guarded = apply_guard(base, 'fp32')
    assert cfg.optim_wrapper.type == guarded.optim_wrapper.type
    assert cfg.optim_wrapper.optimizer.lr == base.optim_wrapper.optimizer.lr
    # The overlay has one hook more, for who uses TensorBoard.
    assert set(guarded.default_hooks) - {'event_text'} == set(
        cfg.default_hooks
    )
    assert cfg.model.type == base.model.type


@pytest.mark.parametrize('is_base', [False, True])
def test_setuptools_without_pkg_resources(monkeypatch, tmp_path, is_base):
    if 'pkg_resources' not in inspect.getsource(is_installed):
        pytest.skip('the fork of MMEngine does without it')
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    name = 'mmnanguard::guards/fp32.py'
    if is_base:
        child = tmp_path / 'child.py'
        child.write_text(f'_base_ = {name!r}')
        name = child
    with pytest.raises(GuardConfigError, match="'setuptools<81'"):
        read_config(name)
