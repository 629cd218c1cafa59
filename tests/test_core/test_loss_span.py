import math

import pytest

from mmnanguard.core import Action, GuardState, Observation, Verdict
from mmnanguard.core.rules.loss_span import loss_span


def state_after(losses):
    """Return the state after commits with these losses."""
    state = GuardState()
    for loss in losses:
        seen = Observation(loss, loss_is_finite=math.isfinite(loss))
        state = state.after(seen, Verdict(Action.STEP))
    return state


@pytest.mark.parametrize(
    ('losses', 'span'),
    [
        ([1.0, 2.0, 1.5, 1.2, *[0.1] * 100], (2.0, 0.1)),
        # The first step exploded: only one loss is from before.
        ([1.2e6, 2e24, 1e20, 1e18, *[5e13] * 100], (1.2e6, 5e13)),
        ([1.0, *[5.0] * 70, 1e9, 5.0], (5.0, 5.0)),  # one odd batch
        ([math.nan, 3.0, *[2.0] * 9, math.nan], (3.0, 2.0)),
        ([-4.0, -3.0, *[0.7] * 20], (0.7, 0.7)),
    ],
)
def test_the_first_and_the_last_losses(losses, span):
    state = state_after(losses)
    assert loss_span(state.first_losses, state.recent_commits) == span
    # A resumed run began where the first attempt did.
    saved = GuardState.from_dict(state.to_dict(), state.skip_rate_window)
    assert saved.first_losses == state.first_losses


def test_a_run_without_losses():
    state = state_after([math.nan] * 5)
    assert loss_span(state.first_losses, state.recent_commits) is None
