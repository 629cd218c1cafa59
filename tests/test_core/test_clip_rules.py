"""Clip rules for numbers, compared with their publications."""

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from mmnanguard.core import (
    AutoClip,
    GuardConfigError,
    NoClip,
    NormClip,
    TieredClip,
    ZClip,
)
from mmnanguard.core.rules.observation import NORM_LIMIT

RULES = [
    NoClip(),
    NormClip(0.5),
    TieredClip([(10, 5), (5, 2), (0, 1)]),
    AutoClip(percentile=30, window=5, warmup=2),
    ZClip(warmup=3),
    ZClip(max_norm=None, warmup=2),
]


def norms(seed=0, size=300):
    """Return norms as in a training: slowly falling, with a spike now and
    then.
    """
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(size=size) / 3 - np.arange(size) / size)
    values[rng.integers(0, size, size // 20)] *= 30
    return values.tolist()


def run(rule, norms):
    """Return the coefficients and the last rule after committing all norms."""
    coefs = []
    for norm in norms:
        coefs.append(rule(norm))
        rule = rule.after(norm)
    return coefs, rule


# As published


@pytest.mark.parametrize('percentile', [0, 10, 25.5, 90])
def test_autoclip_is_the_papers(percentile):
    """Clip to the percentile of all norms up to this one."""
    seen = norms()
    coefs, _ = run(AutoClip(percentile=percentile), seen)
    assert coefs == pytest.approx(
        [
            min(1.0, np.percentile(seen[: index + 1], percentile) / norm)
            for index, norm in enumerate(seen)
        ]
    )
    assert min(coefs) < 0.5


def test_autoclip_goes_by_the_last_norms_only():
    seen = norms()
    coefs, rule = run(AutoClip(percentile=40, window=20), seen)
    assert coefs == pytest.approx(
        [
            min(1.0, np.percentile(seen[: index + 1][-20:], 40) / norm)
            for index, norm in enumerate(seen)
        ]
    )
    assert len(rule.past.row) == 19


def test_autoclip_waits():
    coefs, _ = run(AutoClip(percentile=0, warmup=3), [4.0, 8.0, 2.0, 5.0])
    assert coefs == [1.0, 1.0, 1.0, 2.0 / 5.0]


def published_zclip(norms, alpha, z_threshold, warmup, max_norm):
    """Clip by the paper's formulas, with the constants of its code."""
    mean = np.mean(norms[:warmup])
    var = np.var(norms[:warmup])
    clipped = list(norms[:warmup])
    for norm in norms[warmup:]:
        z = (norm - mean) / (np.sqrt(var) + 1e-6)
        if z > z_threshold:
            eta = z / z_threshold
            norm = mean + z_threshold * np.sqrt(var) / eta
        mean = alpha * mean + (1 - alpha) * norm
        var = alpha * var + (1 - alpha) * (norm - mean) ** 2
        clipped.append(norm)
    return np.minimum(clipped, max_norm or np.inf), mean, var


@pytest.mark.parametrize('max_norm', [None, 0.9])
@pytest.mark.parametrize('values', [(0.97, 2.5, 25), (0.8, 1.0, 4)])
def test_zclip_is_the_papers(values, max_norm):
    seen = norms()
    coefs, rule = run(ZClip(*values, max_norm), seen)
    expected, mean, var = published_zclip(seen, *values, max_norm)
    assert np.multiply(coefs, seen) == pytest.approx(expected)
    assert (rule.past.mean, rule.past.var) == pytest.approx((mean, var))
    assert min(coefs) < 0.5


def test_zclip_clips_an_outlier_the_more_the_farther_out_it_is():
    _, rule = run(ZClip(warmup=4, max_norm=None), [1.0, 2.0, 1.0, 2.0])
    kept = [norm * rule(norm) for norm in (2.0, 4.0, 40.0, 4e6)]
    assert kept[0] == 2.0
    assert kept[1] > kept[2] > kept[3] == pytest.approx(1.5)


def test_zclip_warms_up_under_max_norm_alone():
    rule = ZClip(warmup=3, max_norm=2.0)
    coefs, rule = run(rule, [1.0, 4.0])
    assert coefs == [1.0, 0.5]
    assert (rule.past.first, rule.past.mean) == ((1.0, 4.0), None)
    rule = rule.after(1.0)
    assert (rule.past.first, rule.past.mean, rule.past.var) == ((), 2.0, 2.0)


@pytest.mark.parametrize(
    ('norm', 'kept'),
    [(0.0, 0.0), (0.5, 0.5), (3, 1), (5, 1), (5.01, 2), (10, 2), (11, 5)],
)
def test_the_tiers_of_the_issue(norm, kept):
    rule = TieredClip([(10, 5), (5, 2), (0, 1)])
    assert norm * rule(norm) == pytest.approx(kept, rel=1e-5)


def test_tiers_in_any_order_and_a_norm_below_all():
    rule = TieredClip([[1, 0.5], [10, 0.1]], norm_type=math.inf)
    assert rule == TieredClip(((10.0, 0.1), (1.0, 0.5)), math.inf)
    assert rule(1.0) == 1.0
    assert rule(2.0) == pytest.approx(0.25, rel=1e-5)
    assert rule(20.0) == pytest.approx(0.005, rel=1e-5)


def test_one_tier_is_a_norm_clip():
    for norm in norms():
        assert TieredClip([(0, 0.7)])(norm) == NormClip(0.7)(norm)


@pytest.mark.parametrize(
    ('tiers', 'jumps'),
    [
        ([(10, 5), (5, 2), (0, 1)], ((10, 5, 2), (5, 2, 1))),
        ([(10, 1), (5, 2), (0, 5)], ()),
        ([(10, 1), (0, 1)], ()),
        ([(10, 1)], ()),  # the lower ones keep all
        ([(10, 20), (0, 15)], ()),  # neither clips at 10
        ([(10, 20), (0, 5)], ((10, 10, 5),)),
    ],
)
def test_where_a_larger_norm_keeps_more(tiers, jumps):
    rule = TieredClip(tiers)
    assert rule.jumps() == jumps
    for edge, above, on_it in jumps:
        just_above = edge * (1 + 1e-9)
        assert just_above * rule(just_above) == pytest.approx(above, rel=1e-5)
        assert edge * rule(edge) == pytest.approx(on_it, rel=1e-5)


# What no rule may do


@pytest.mark.parametrize('rule', RULES, ids=str)
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_such_a_norm_never_enters_the_statistics(rule, bad):
    """A NaN would make every later gradient NaN in AutoClip's own code and end
    all clipping in ZClip's; a 0 could end training.
    """
    seen = norms(size=30)
    _, rule = run(rule, seen)
    assert rule.after(bad) == rule
    _, from_the_start = run(rule.with_state({}).after(bad), seen)
    assert from_the_start == rule


def test_the_published_autoclip_is_poisoned():
    """NaN poisons the percentile, so the test above can fail."""
    assert math.isnan(np.percentile([1.0, math.nan, 2.0], 10))


@pytest.mark.parametrize('rule', RULES, ids=str)
@pytest.mark.parametrize('largest', [1.0, 1e19, NORM_LIMIT, 1e300])
def test_any_norm_gets_a_coefficient_above_0_up_to_1(rule, largest):
    """The norms include some whose squares overflow float32."""
    small = [norm * 1e-12 for norm in norms(size=20)]
    for norm in [0.0, *small, largest, 0.0, *small, *[largest] * 9, *small]:
        assert 0 < rule(norm) <= 1
        rule = rule.after(norm)
        saved = json.dumps(rule.to_dict(), allow_nan=False)
        assert rule.with_state(json.loads(saved)) == rule


@pytest.mark.parametrize('rule', RULES, ids=str)
def test_norms_of_0_alone(rule):
    coefs, after = run(rule, [0.0] * 50)
    assert coefs == [1.0] * 50
    assert after == rule


@pytest.mark.parametrize('rule', RULES, ids=str)
@pytest.mark.parametrize('stop', [1, 2, 3, 4, 50])
def test_statistics_are_saved_and_resumed(rule, stop):
    seen = norms(size=100)
    coefs, whole = run(rule, seen)
    _, part = run(rule, seen[:stop])
    saved = json.loads(json.dumps(part.to_dict()))
    assert saved['type'] == type(rule).__name__
    later, resumed = run(rule.with_state(saved), seen[stop:])
    assert (coefs[stop:], whole) == (later, resumed)


def test_the_configs_own_values_win_over_the_checkpoints():
    _, saved = run(AutoClip(percentile=90, window=9), norms(size=20))
    rule = AutoClip(percentile=10, window=4).with_state(saved.to_dict())
    assert (rule.percentile, rule.window) == (10, 4)
    assert rule.past.row == saved.past.row[-3:]
    _, saved = run(ZClip(warmup=9), norms(size=8))
    rule = ZClip(alpha=0.5, warmup=3).with_state(saved.to_dict())
    assert (rule.alpha, rule.warmup) == (0.5, 3)
    assert rule.after(1.0).past.mean is not None


def test_statistics_are_bounded():
    _, rule = run(AutoClip(), norms(size=3000))
    assert len(rule.past.row) == len(rule.past.ordered) == 999
    _, rule = run(ZClip(), norms(size=300))
    assert rule.past.first == ()


@pytest.mark.parametrize('rule', RULES, ids=str)
def test_a_rule_is_a_value(rule):
    """A rule never changes, because a rejection does not restore it."""
    before = repr(rule)
    rule(3.0)
    rule.after(3.0)
    rule.with_state(rule.after(5.0).to_dict())
    assert repr(rule) == before
    with pytest.raises(FrozenInstanceError):
        rule.norm_type = 1.0
    assert '\n' not in str(rule)
    assert len(str(rule)) < 80


@pytest.mark.parametrize(
    ('rule', 'keys', 'words'),
    [
        (TieredClip, dict(), ['tiers', '()', 'above']),
        (TieredClip, dict(tiers=5), ['tiers', '5']),
        (TieredClip, dict(tiers=[(1, 2, 3)]), ['tiers', '(1, 2, 3)']),
        (TieredClip, dict(tiers=[(-1, 2)]), ['-1', '0 or more']),
        (TieredClip, dict(tiers=[(1, 0)]), ['(1, 0)', 'above 0']),
        (TieredClip, dict(tiers=[(1, math.nan)]), ['nan', 'above 0']),
        (TieredClip, dict(tiers=[(math.nan, 1)]), ['nan', '0 or more']),
        (TieredClip, dict(tiers=[('1', 1)]), ["'1'"]),
        (TieredClip, dict(tiers=[(1, 2), (1, 3)]), ['no two']),
        (TieredClip, dict(tiers=[(1, 2)], norm_type=0), ['norm_type', '0']),
        (AutoClip, dict(percentile=100), ['percentile', '100', '[0, 100)']),
        (AutoClip, dict(percentile=-1), ['percentile', '-1']),
        (AutoClip, dict(percentile=math.nan), ['percentile', 'nan']),
        (AutoClip, dict(percentile='10'), ['percentile', "'10'"]),
        (AutoClip, dict(window=1), ['window', '1', 'at least 2']),
        (AutoClip, dict(window=10.0), ['window', '10.0', 'an integer']),
        (AutoClip, dict(warmup=-1), ['warmup', '-1', 'at least 0']),
        (AutoClip, dict(window=9, warmup=9), ['warmup', 'window=9']),
        (AutoClip, dict(norm_type=-2), ['norm_type', '-2', "'inf'"]),
        (ZClip, dict(alpha=1), ['alpha', '1', '(0, 1)']),
        (ZClip, dict(alpha=0.0), ['alpha', '0.0']),
        (ZClip, dict(alpha=math.nan), ['alpha', 'nan']),
        (ZClip, dict(z_threshold=0), ['z_threshold', '0', 'above 0']),
        (ZClip, dict(warmup=1), ['warmup', '1', 'at least 2']),
        (ZClip, dict(warmup=True), ['warmup', 'True']),
        (ZClip, dict(max_norm=0), ['max_norm', '0', 'or None']),
        (ZClip, dict(max_norm=math.inf), ['max_norm', 'inf', 'or None']),
        (ZClip, dict(eps=-1e-6), ['eps', '-1e-06', 'above 0']),
        (ZClip, dict(norm_type='two'), ['norm_type', "'two'"]),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(rule, keys, words):
    with pytest.raises(GuardConfigError) as caught:
        rule(**keys)
    for word in ['optim_wrapper.clip_grad', 'must be', *words]:
        assert word in str(caught.value)
