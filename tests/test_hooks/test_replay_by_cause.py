"""The causes after which an autopsy and a dump are made."""

from types import SimpleNamespace

import pytest

from mmnanguard.core import Action, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.hooks import AutopsyHook, BatchDumpHook


def event_of(cause):
    return GuardEvent(Action.SKIP, cause, iter=9, consecutive_skips=1)


@pytest.mark.parametrize('overflows', [False, True])
@pytest.mark.parametrize('cause', CAUSES, ids=lambda cause: cause.value)
def test_an_autopsy_needs_something_to_look_for(cause, overflows):
    hook = AutopsyHook(overflows=overflows)
    hook._window = SimpleNamespace()
    facts = CAUSES[cause]
    expected = facts.is_replayable and (overflows or not facts.is_routine)
    assert hook._is_due(event_of(cause), (cause.value,)) == expected


@pytest.mark.parametrize('overflows', [False, True])
@pytest.mark.parametrize('cause', CAUSES, ids=lambda cause: cause.value)
def test_a_dump_needs_a_batch_that_matters(cause, overflows, monkeypatch):
    written = []
    hook = BatchDumpHook(overflows=overflows)
    hook._window = SimpleNamespace()
    monkeypatch.setattr(hook, '_write', lambda *args: written.append(args))
    hook.after_guard_event(SimpleNamespace(), event_of(cause))
    facts = CAUSES[cause]
    is_skipped = facts.is_gradual or (facts.is_routine and not overflows)
    assert bool(written) != is_skipped
