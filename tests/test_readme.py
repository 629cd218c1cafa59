"""The promises of the README hold."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmnanguard import apply_guard
from mmnanguard.core.clipping.clip_rule import config_keys
from mmnanguard.numerics import AdaptiveGradClip
from mmnanguard.optim import NanGuardAmpOptimWrapper
from mmnanguard.optim.clip_grad import OWN_RULES, build_clip

ROOT = Path(__file__).parents[1]
READMES = ['README.md', 'README_zh-CN.md']


@pytest.fixture(params=READMES)
def readme(request):
    return (ROOT / request.param).read_text()


def blocks(text, language):
    return re.findall(rf'```{language}\n(.*?)```', text, re.S)


def test_both_languages_show_the_same_code():
    texts = [(ROOT / name).read_text() for name in READMES]
    for language in ('diff', 'bash', 'text'):
        assert blocks(texts[0], language) == blocks(texts[1], language) != []
    numbers = []
    for text in texts:
        (table,) = re.findall(
            '<!-- compare -->(.*?)<!-- /compare -->', text, re.S
        )
        numbers.append(re.findall(r'\d+\.\d+', table))
    assert numbers[0] == numbers[1] != []


def test_it_is_short(readme):
    assert len(readme.splitlines()) <= 150


def test_the_config_builds(readme):
    (diff,) = blocks(readme, 'diff')
    text = '\n'.join(
        line[1:].split('#')[0]
        for line in diff.splitlines()
        if not line.startswith('-')
    )
    cfg = Config.fromstring(text, '.py')
    keys = inspect.signature(NanGuardAmpOptimWrapper).parameters
    assert cfg.optim_wrapper.type.endswith(NanGuardAmpOptimWrapper.__name__)
    assert set(cfg.optim_wrapper) - {'type'} <= set(keys)
    for hook in cfg.default_hooks.values():
        HOOKS.build(hook)


@pytest.mark.parametrize('language', ['en', 'zh_cn'])
def test_the_drill_builds(language):
    text = (ROOT / 'docs' / language / 'get_started.md').read_text()
    cfg = Config.fromstring(blocks(text, 'python')[-1], '.py')
    assert len(HOOKS.build(cfg.default_hooks.fire_drill).faults) == 2


@pytest.mark.parametrize('language', ['en', 'zh_cn'])
def test_the_overlay_applies(language, tmp_path):
    text = (ROOT / 'docs' / language / 'recipes.md').read_text()
    path = tmp_path / 'overlay.py'
    path.write_text(blocks(text, 'python')[0])
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1))))
    cfg = apply_guard(cfg, str(path))
    assert cfg.optim_wrapper.guard.max_consecutive_skips == 50
    assert 'nan_guard' in cfg.default_hooks


@pytest.mark.parametrize('rule', OWN_RULES)
def test_each_option_of_a_clip_is_explained_with_its_default(rule):
    text = (ROOT / 'docs' / 'en' / 'clipping.md').read_text()
    (part,) = re.findall(
        rf'^## {rule.__name__}\n(.*?)(?=^## |\Z)', text, re.M | re.S
    )
    (config,) = blocks(part, 'python')
    clip_grad = Config.fromstring(config, '.py').clip_grad
    assert isinstance(build_clip(clip_grad)[rule is AdaptiveGradClip], rule)
    rows = re.findall(r'^\| `(\w+)` \| ([^|]+) \|', part, re.M)
    keys = config_keys(rule)
    fields = [f for f in dataclasses.fields(rule) if f.name in keys]
    defaults = {f.name: f'{f.default!r}' for f in fields}
    defaults.update(norm_type='2', tiers='needed', exclude='[]')
    defaults = {f.name: defaults[f.name].replace('10.0', '10') for f in fields}
    assert dict(rows) == defaults


def test_each_row_of_the_guarantee_has_a_test():
    text = (ROOT / 'docs' / 'en' / 'guarantee.md').read_text()
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    tests = re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?` \|$', text, re.M)
    heads = [row for row in rows if row.startswith(('| what', '| ---'))]
    without = [row for row in rows if row.endswith('| |')]
    assert len(tests) == len(rows) - len(heads) - len(without)
    for path, name in tests:
        assert f'def {name}' in (ROOT / path).read_text(), (path, name)
