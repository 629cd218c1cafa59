"""Any sequence of updates agrees with a small model of the rules.

The model follows the docs, in lists and loops, without records.
"""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard.core import (
    Action,
    Cause,
    GuardPolicy,
    GuardState,
    Observation,
    decide,
)

NAN = math.nan
GOOD = st.floats(0.5, 2.0)
UPDATES = st.lists(
    st.one_of(
        st.tuples(GOOD, GOOD),
        st.tuples(st.floats(5.0, 1e6), GOOD),  # a spiky norm
        st.tuples(GOOD, st.floats(5.0, 1e6)),  # a spiky loss
        st.sampled_from(
            [(NAN, 1.0), (1.0, NAN), (math.inf, 1.0), (1e30, 1.0)]
        ),
    ),
    max_size=60,
)
POLICIES = st.fixed_dictionaries(
    dict(
        max_consecutive_skips=st.one_of(st.none(), st.integers(1, 6)),
        max_skip_rate=st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.9])),
        skip_rate_window=st.integers(1, 10),
        spike=st.one_of(
            st.none(),
            st.fixed_dictionaries(
                dict(
                    threshold=st.sampled_from([1.0123, 3.0456]),
                    window=st.integers(2, 8),
                    action=st.sampled_from(['skip', 'clip']),
                )
            ),
        ),
        lr_backoff=st.one_of(
            st.none(),
            st.fixed_dictionaries(
                dict(
                    above=st.sampled_from([1.5, 10.0]),
                    factor=st.sampled_from([0.5, 0.9]),
                    floor=st.sampled_from([0.1, 0.5]),
                    recovery=st.integers(1, 5),
                )
            ),
        ),
    )
)


class Model:
    def __init__(self, policy):
        self.policy = policy
        self.norms, self.losses, self.skips = [], [], []
        self.lr, self.back = 1.0, 0.0

    def usual(self, past):
        mean = statistics.fmean(past)
        spread = max(statistics.pstdev(past), 1e-3 * abs(mean))
        return mean, mean + self.policy['spike']['threshold'] * spread

    def spike(self, norm, loss):
        rule = self.policy['spike']
        if rule is None or len(self.norms) < rule['window']:
            return None
        for what, value, past in (
            ('grad_norm', norm, self.norms),
            ('loss', loss, self.losses),
        ):
            if value > self.usual(past[-rule['window'] :])[1]:
                return what
        return None

    def update(self, norm, loss):
        """Return whether the update commits, its clip coefficient, its factor,
        and whether the run halts.
        """
        is_bad = math.isnan(loss) or not norm < 1.8e19
        what = None if is_bad else self.spike(norm, loss)
        if is_bad or (what and self.policy['spike']['action'] == 'skip'):
            self.skips.append(True)
            return False, None, None, self.is_over()
        coef = 1.0
        kept = dict(grad_norm=norm, loss=loss)
        if what:
            window = self.policy['spike']['window']
            coef = min(1.0, self.usual(self.norms[-window:])[0] / norm)
            past = dict(grad_norm=self.norms, loss=self.losses)[what]
            kept[what] = self.usual(past[-window:])[1]
        self.norms.append(kept['grad_norm'])
        self.losses.append(kept['loss'])
        self.skips.append(False)
        rule = self.policy['lr_backoff']
        if rule and norm > rule['above']:
            self.lr = max(rule['floor'], self.lr * rule['factor'])
            self.back = (1 - self.lr) / rule['recovery']
        elif rule:
            self.lr = min(1.0, self.lr + self.back)
        return True, coef, self.lr, False

    def is_over(self):
        streak = 0
        while streak < len(self.skips) and self.skips[-1 - streak]:
            streak += 1
        most = self.policy['max_consecutive_skips']
        if most is not None and streak >= most:
            return True
        rate = self.policy['max_skip_rate']
        size = self.policy['skip_rate_window']
        recent = self.skips[-size:]
        return (
            rate is not None
            and len(recent) == size
            and not all(recent)
            and sum(recent) > rate * size
        )


@settings(max_examples=300, deadline=None)
@given(UPDATES, POLICIES)
def test_any_sequence(updates, config):
    policy = GuardPolicy.from_config(config)
    spike = policy.spike
    window = spike.window if spike else 0
    state = GuardState.from_dict({}, policy.skip_rate_window, window)
    model = Model(config)
    for number, (norm, loss) in enumerate(updates):
        seen = Observation(
            loss=loss,
            loss_is_finite=math.isfinite(loss),
            grad_norm=norm,
            grad_is_finite=math.isfinite(norm),
        )
        verdict = decide(seen, state, policy)
        commits, coef, lr_factor, halts = model.update(norm, loss)
        assert (verdict.action is Action.STEP) == commits, number
        assert (verdict.action is Action.HALT) == halts, number
        if commits:
            assert verdict.clip_coef == pytest.approx(coef)
            assert verdict.lr_factor == pytest.approx(lr_factor)
            assert 0 < verdict.clip_coef <= 1
            assert 0 < verdict.lr_factor <= 1
        else:
            assert verdict.cause is not Cause.NONE
        # A checkpoint between any two updates makes no difference.
        state = GuardState.from_dict(
            state.after(seen, verdict).to_dict(),
            policy.skip_rate_window,
            window,
        )
        assert len(state.recent_norms) <= window
    assert state.num_steps == sum(not skip for skip in model.skips)
    assert state.total_skips == sum(model.skips)
