"""InputGuardHook's options, and their effects on other hooks."""

import math

import pytest

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks import InputGuardHook


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (dict(action='skip'), "action is 'skip'.* reject, sanitize, halt"),
        (dict(keys='inputs'), "keys is 'inputs'.* a list of names"),
        (dict(keys=[]), r'keys is \[\].* None for everything'),
        (dict(keys=[3]), r'keys is \[3\]'),
        (dict(nan=math.nan), 'nan is nan.* a finite number'),
        (dict(nan=None), 'nan is None'),
        (dict(nan='0'), "nan is '0'"),
        (dict(posinf=math.inf), 'posinf is inf.* extreme of the dtype'),
        (dict(neginf=True), 'neginf is True'),
        (dict(interval=0), 'interval is 0.* 1 or more'),
        (dict(interval=2.5), 'interval is 2.5'),
        (dict(interval=True), 'interval is True'),
    ],
)
def test_bad_values(arguments, said):
    with pytest.raises(GuardConfigError, match=f'InputGuardHook.{said}'):
        InputGuardHook(**dict(dict(action='sanitize'), **arguments))


@pytest.mark.parametrize('action', ['reject', 'halt'])
@pytest.mark.parametrize(
    'argument', [dict(nan=1), dict(posinf=None), dict(neginf=-1.0)]
)
def test_what_the_action_does_not_heed(action, argument):
    with pytest.raises(GuardConfigError, match=r"Leave .* action='sanitize'"):
        InputGuardHook(action=action, **argument)
    with pytest.raises(GuardConfigError, match=r'interval is 10, but'):
        InputGuardHook(action=action, interval=10)


def test_good_values():
    InputGuardHook('sanitize', ['inputs'], 1, None, None, 10)
    InputGuardHook('reject', ('inputs',), 0)
