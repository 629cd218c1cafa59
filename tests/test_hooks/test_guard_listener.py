"""Hooks of a user's project that listen to the guard."""

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks import GuardListener
from mmnanguard.hooks.guard.check_listeners import (
    check_signatures,
    misspelt_methods,
)
from mmnanguard.registry import HOOKS


class Recorder(GuardListener):
    """A listener that overrides two of the three methods."""

    def __init__(self):
        self.calls = []

    def after_guard_event(self, runner, event):
        self.calls.append(('update', event.id))

    def after_guard_row(self, runner, row):
        self.calls.append((row['kind'], row['id']))


def train(tmp_path, hook, **hooks):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=dict(
            guard_hooks(dict(iter=4, site='grad')),
            autopsy=dict(type='mmnanguard.AutopsyHook'),
            **hooks,
        ),
        custom_hooks=[hook],
    )
    runner.train()
    return runner


def test_a_listener_is_called_with_events_and_rows(tmp_path):
    recorder = Recorder()
    train(tmp_path, recorder)
    (update, event_id), (autopsy, row_id) = recorder.calls
    assert (update, autopsy) == ('update', 'autopsy')
    assert row_id == event_id != ''


@pytest.mark.parametrize(
    ('method', 'right_name'),
    [
        ('after_guard_evnt', 'after_guard_event(self, runner, event)'),
        ('after_gaurd_row', 'after_guard_row(self, runner, row)'),
        ('on_guard_event', 'after_guard_event(self, runner, event)'),
        ('afterGuardEvent', 'after_guard_event(self, runner, event)'),
        ('after_guard_rows', 'after_guard_row(self, runner, row)'),
        ('on_audit', 'after_audit(self, runner, audit)'),
        ('after_audits', 'after_audit(self, runner, audit)'),
    ],
)
@pytest.mark.parametrize('base', [Hook, GuardListener])
def test_a_misspelt_method_is_named(method, right_name, base):
    hook = type('Wrong', (base,), {method: lambda self, *args: None})()
    (warning,) = misspelt_methods([Recorder(), hook])
    assert warning == (
        f'Wrong.{method} is never called: did you mean {right_name}?'
    )


@pytest.mark.parametrize('method', ['event', 'after_backward', '_after_audit'])
def test_other_methods_are_left_alone(method):
    hook = type('Other', (Hook,), {method: lambda self: None})()
    assert misspelt_methods([hook]) == []


def test_no_registered_hook_is_taken_for_misspelt():
    HOOKS.import_from_location()
    MMENGINE_HOOKS.import_from_location()
    classes = {
        *HOOKS.module_dict.values(),
        *MMENGINE_HOOKS.module_dict.values(),
    }
    # Other tests register hooks that are misspelt.
    packages = ('mmnanguard', 'mmengine')
    hooks = [
        c.__new__(c) for c in classes if c.__module__.startswith(packages)
    ]
    assert len(hooks) > 20
    assert misspelt_methods(hooks) == []
    check_signatures(hooks)


def test_the_run_warns_of_a_misspelt_method(tmp_path):
    def after_guard_evnt(self, runner, event):
        raise AssertionError('it is never called')

    hook = type('Wrong', (Hook,), dict(after_guard_evnt=after_guard_evnt))()
    runner = train(tmp_path, hook)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'Wrong.after_guard_evnt is never called' in log
    assert runner.iter == runner.max_iters


@pytest.mark.parametrize(
    'method',
    [
        lambda self, runner: None,
        lambda self, runner, guard_event: None,
        lambda runner, event: None,
    ],
)
def test_a_method_that_cannot_be_called_is_refused_at_the_start(
    tmp_path, method
):
    hook = type('Wrong', (Hook,), dict(after_guard_event=method))()
    with pytest.raises(GuardConfigError) as caught:
        train(tmp_path, hook)
    for word in ('Wrong.after_guard_event', '(self, runner, event)'):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'method',
    [
        lambda self, runner, event: None,
        lambda self, runner, event, extra=None: None,
        lambda self, *args, **kwargs: None,
        lambda self, runner, **kwargs: None,
    ],
)
def test_any_method_that_can_be_called_is_taken(method):
    hook = type('Right', (Hook,), dict(after_guard_event=method))()
    check_signatures([hook])
