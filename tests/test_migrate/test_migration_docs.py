"""The promises of docs/en/migration.md hold."""

import re
from pathlib import Path

import pytest
from migrating import Migration
from mmengine.config import Config
from mmengine.registry import HOOKS as REGISTRY

from mmnanguard.migrate.migration import TARGETS
from mmnanguard.migrate.model_keys import MODEL_KEYS
from mmnanguard.migrate.nan_hooks import HOOKS, WRAPPERS
from mmnanguard.migrate.policies import POLICIES
from tools.migrate_config import main, parse_args

TEXT = (Path(__file__).parents[2] / 'docs/en/migration.md').read_text()


def block(mark):
    (text,) = re.findall(
        rf'<!-- {mark} -->\n(?:<!-- [^\n]* -->\n)?\n```\w+\n(.*?)```',
        TEXT,
        re.DOTALL,
    )
    return text


def first_cells(head):
    table = TEXT.split(head)[1].split('\n\n')[0]
    return [line.split(' | ')[0] for line in table.splitlines() if line]


def test_the_three_lines():
    (diff,) = re.findall(r'```diff\n(.*?)```', TEXT, re.S)
    lines = [line[1:] for line in diff.splitlines() if line[0] != '-']
    cfg = Config.fromstring('\n'.join(lines), '.py')
    assert cfg.optim_wrapper.type == 'mmnanguard.NanGuardOptimWrapper'
    for hook in cfg.default_hooks.values():
        REGISTRY.build(hook)


def test_the_example_is_what_the_tool_makes_of_it(tmp_path, capsys):
    assert Migration(tmp_path, block('old')).new == block('new')
    (tmp_path / 'my_config.py').write_text(block('old'))
    assert main([str(tmp_path / 'my_config.py')]) == 1
    out = capsys.readouterr().out
    assert out[out.index('done:') :] == block('told')


def test_each_key_is_in_the_table():
    cells = ' '.join(first_cells('| 1.x | 2.x | what else |\n'))
    assert {*re.findall(r'`(\w+)`', cells)} == {
        *TARGETS,
        *MODEL_KEYS,
        'custom_hooks',
    }


def test_each_policy_is_in_the_table():
    cells = first_cells('| policy | scheduler |\n| --- | --- |\n')
    assert [cell.strip('| `') for cell in cells] == [*POLICIES]


@pytest.mark.parametrize('name', [*WRAPPERS, *HOOKS])
def test_each_guard_is_in_the_table_with_its_reason(name):
    hand = WRAPPERS.get(name) or HOOKS[name]
    row = rf'^\| .*`{name}`.* \| {re.escape(hand.why)} \|$'
    assert re.search(row, TEXT, re.M)


def test_each_option_of_the_tool_is_explained():
    for name in vars(parse_args([__file__])):
        if name != 'config':
            option = name.replace('_', '-')
            assert re.search(rf'--{option}\b', TEXT), option
