"""The language rules hold, and each of them can fail."""

import language
import pytest


def rules_broken_by(source):
    violations = language.check_source(source, 'tools/bad.py')
    return [violation.rule for violation in violations]


@pytest.fixture(scope='module')
def violations():
    folders = [language.ROOT / folder for folder in language.FOLDERS]
    return language.check_files(language.list_files(folders))


def test_all_folders_keep_the_rules(violations):
    assert list(map(str, violations)) == []


def test_counts_of_the_package_keep_their_limits():
    measured = language.measure_package()
    assert not language.exceeded_limits(measured), measured


def test_good_module_breaks_no_rule():
    source = '''"""The rules."""
class Rule:
    """A rule that a machine can check."""
def is_bad(values):
    """Whether a value is bad."""
    return [value for value in values if value]
def clear():
    """Do nothing, which is what a caller without rules needs."""
'''
    assert rules_broken_by(source) == []


def test_module_needs_a_docstring():
    assert rules_broken_by('x = 1\n') == ['the module has no docstring']
    assert not language.check_source('x = 1\n', 'tests/x.py', False)


@pytest.mark.parametrize(
    'summary',
    [
        'Of the open window.',
        'What of a checked config is seen.',
        'As it is now.',
        'Its type.',
        "It's gone.",
        '``Where`` it stands.',
        'In the first\n    iteration.',
    ],
)
@pytest.mark.parametrize(
    'template',
    ['"""{}"""', 'class A:\n    """{}"""', 'def f():\n    """{}"""'],
)
def test_docstring_must_not_open_as_a_fragment(summary, template):
    source = template.format(summary)
    violations = language.check_source(source, 'a.py', False)
    assert len(violations) == 1
    assert 'the docstring opens with' in violations[0].rule


@pytest.mark.parametrize(
    'docstring', ['Kept?', 'Kept, and\nnot\nanother?\n\nText.']
)
def test_docstring_must_not_be_a_question(docstring):
    (rule,) = rules_broken_by(f'"""{docstring}"""')
    assert 'is a question' in rule


@pytest.mark.parametrize(
    'expression',
    [
        '[b for a in rows for b in a]',
        '{b for a in rows for b in a}',
        '{b: a for a in rows for b in a}',
        'sum(b for a in rows for b in a)',
    ],
)
def test_comprehension_must_not_have_two_fors(expression):
    assert rules_broken_by(f'"""X."""\nx = {expression}') == [
        "a comprehension has two 'for'"
    ]


@pytest.mark.parametrize(
    'expression',
    ['[a if a else 0 for a in rows]', '[a for a in (x if x else y)]'],
)
def test_comprehension_must_not_hold_a_conditional_expression(expression):
    assert rules_broken_by(f'"""X."""\nx = {expression}') == [
        'a conditional expression stands inside a comprehension'
    ]


def test_conditional_expressions_must_not_be_nested():
    assert rules_broken_by('"""X."""\nx = 1 if a else 2 if b else 3') == [
        'conditional expressions are nested'
    ]


@pytest.mark.parametrize(
    'statement',
    [
        'told = 1',
        'a.found = 1',
        'for one in rows: pass',
        'a, *own = rows',
        '[each for each in rows]',
        'def look_at(): pass',
        'def f(*, both): pass',
        'class Told: pass',
        '_own: int = 1',
        'with a as twins: pass',
    ],
)
def test_banned_names_must_not_be_defined(statement):
    (rule,) = rules_broken_by(f'"""X."""\n{statement}')
    assert 'is banned' in rule


def test_banned_names_of_others_may_be_read():
    assert rules_broken_by('"""X."""\nx = record.found') == []


def test_words_are_counted():
    source = '''"""X."""
from typing import Any
import typing
# Why.
x: Any = [a for a in b]  # noqa: E501
y: typing.Any = 1 if x else 2  # because
'''
    assert language.count_words(source) == {
        'lines': 6,
        'comprehensions': 1,
        'conditional expressions': 1,
        'comments': 2,
        'Any': 2,
    }


def test_counts_beyond_a_limit_are_named():
    worst = {}
    for name, limit in language.LIMITS.items():
        worst[name] = 1000.0 if limit.is_largest else 0.0
    assert language.exceeded_limits(worst) == list(language.LIMITS)
    values = {name: limit.value for name, limit in language.LIMITS.items()}
    assert language.exceeded_limits(values) == []
