"""The promises of docs/en/data.md hold."""

import inspect
import re
from pathlib import Path

import pytest

from mmnanguard.datasets import ExcludeSamples
from mmnanguard.datasets.checks import FieldCheck
from mmnanguard.datasets.find_problems import build_checks, find_problems
from mmnanguard.registry import CHECKS
from tools.audit_dataset import parse_args

TEXT = (Path(__file__).parents[2] / 'docs/en/data.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.S)


def rows(start):
    """Return the rows of the first table after a line."""
    table = TEXT.split(start)[1].split('\n\n| ')[1].split('\n\n')[0]
    return dict(re.findall(r'^\| `([^`]+)` \| ([^|]*?) ?\|', table, re.M))


def test_the_own_check():
    exec(BLOCKS[3], {})
    checks = build_checks([dict(type='one_label_a_box', key='boxes')], 'docs')
    problems = find_problems(dict(boxes=[1, 2], gt_labels=[1]), checks)
    assert problems[0].text == '2 boxes, 1 labels'
    CHECKS.module_dict.pop('one_label_a_box')


@pytest.mark.parametrize(
    ('start', 'owner'),
    [('## Leave them out', ExcludeSamples), ('\nAll checks have', FieldCheck)],
)
def test_each_option_is_explained_with_its_default(start, owner):
    parameters = inspect.signature(owner).parameters.values()
    expected = {}
    for parameter in parameters:
        is_needed = parameter.default is parameter.empty
        text = 'needed' if is_needed else f'{parameter.default}'
        expected[parameter.name] = text
    assert rows(start) == expected


def test_each_option_of_the_tool_is_explained():
    given = vars(parse_args(['config.py']))
    options = {f'--{name.replace("_", "-")}' for name in given}
    assert set(rows('## The audit')) == options - {'--config'}
