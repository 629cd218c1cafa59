"""A config's text is read as data, and none of it is run."""

import math
from pathlib import Path

import pytest
from mmengine.config import Config

from mmnanguard.hooks.replay.plain_config import parse_config

NEEDED = "model = dict(type='Net')\noptim_wrapper = dict(type='Wrapper')\n"
ROOT = Path(__file__).parents[2]


def test_what_mmengine_writes_comes_back():
    cfg = dict(
        model=dict(type='Net', sizes=(1, -2.5), none=None, empty=[()]),
        optim_wrapper=dict(type='a.b.Wrapper', paramwise={'a.b': dict(x=1)}),
        keys={1: 2, 'a b': [dict(), {3: [4]}]},
        string='{{ fileDirname }} \'quotes\' "and" \\ $HOME {{$USER}}\n',
        limits=[math.inf, -math.inf],
        lists=[[1, (2, [True])], [dict(a=dict(b=b'c'))]],
        others=[{1, 2}, range(3), slice(None, 2), 1 + 2j, set()],
        custom_imports=dict(imports=['nowhere']),
    )
    assert parse_config(Config(cfg).pretty_text) == cfg


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/digits/*fp*.py')))
def test_configs_of_this_repository(path):
    cfg = Config.fromfile(path, import_custom_modules=False)
    assert parse_config(cfg.pretty_text) == cfg.to_dict()


def test_nan():
    assert math.isnan(parse_config(f'{NEEDED}x = [nan]')['x'][0])


@pytest.mark.parametrize(
    'line',
    [
        'import os',
        "__import__('os').system('x')",
        "x = __import__('os').system('x')",
        'x = dict(a=torch.float16)',
        'x = tensor([0., 0.])',
        'x = [y for y in (1, 2)]',
        "x = f'{1}'",
        'x = dict(**dict(a=1))',
        'x = {**dict(a=1)}',
        'x = [*(1, 2)]',
        "x = eval('1')",
        'x = dict.fromkeys([1])',
        'x = (lambda: 1)()',
        'x = -dict()',
        'x = {[]: 1}',
        'x = tuple(3)',
        'x.y = 3',
        'x: int = 3',
        'x = y = 3',
    ],
)
def test_all_else_is_refused_and_shown(line):
    with pytest.raises(ValueError, match=r'as data \(line 3 has '):
        parse_config(NEEDED + line)


DEEP = pytest.param('x = ' + '-' * 10**5 + '1', id='deep')


@pytest.mark.parametrize('text', ['x = (', 'x = <lambda>', DEEP])
def test_what_is_no_python(text):
    with pytest.raises(ValueError, match='is no Python'):
        parse_config(text)


def test_what_a_replay_needs():
    with pytest.raises(ValueError, match='no `model` and no `optim_wrapper`'):
        parse_config('')
