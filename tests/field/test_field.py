"""A guarded run never ends worse, and the user is told the right thing."""

import re
from pathlib import Path

import pytest

from field.all_scenarios import SCENARIOS
from field.known_wrong import WORSE, WRONG
from field.sides import run_all
from field.verdict import what_is_worse, what_is_wrong

ROOT = Path(__file__).parents[2]
# An issue, or the address of a page.
SOURCE = re.compile(r'[\w.-]+/[\w.-]+#\d+|\w+(\.\w+)+/[\w./-]+')


def marked(known):
    """Return all names; those that are known must fail."""
    return [
        pytest.param(name, marks=marks_of(known.get(name)))
        for name in SCENARIOS
    ]


def marks_of(reason):
    return [pytest.mark.xfail(reason=reason, strict=True)] if reason else []


@pytest.mark.parametrize('name', marked(WORSE))
def test_never_worse_than_without(name):
    assert what_is_worse(SCENARIOS[name], run_all(name)) == []


@pytest.mark.parametrize('name', marked(WRONG))
def test_right_cause_and_advice(name):
    assert what_is_wrong(SCENARIOS[name], run_all(name)) == []


def test_every_scenario_has_a_source_and_a_story():
    assert len(SCENARIOS) >= 60
    for name, scenario in SCENARIOS.items():
        assert SOURCE.fullmatch(scenario.source), name
        assert type(scenario).__doc__, name


@pytest.mark.parametrize('readme', ['README.md', 'README_zh-CN.md'])
def test_the_readme_has_the_score(readme):
    text = (ROOT / readme).read_text()
    (score,) = re.findall('<!-- field -->(.*?)<!-- /field -->', text, re.S)
    numbers = [int(number) for number in re.findall(r'\d+', score)]
    num_wrong = len(set(WORSE) | set(WRONG))
    assert numbers == [len(SCENARIOS) - num_wrong, len(SCENARIOS)]


@pytest.mark.parametrize('language', ['en', 'zh_cn'])
def test_the_limits_name_what_is_wrong(language):
    text = (ROOT / 'docs' / language / 'limits.md').read_text()
    named = set(re.findall(r'^\| `(\w+)` \|', text, re.M))
    assert named & set(SCENARIOS) == set(WORSE) | set(WRONG)
