"""The observations of several ranks merge into one, equal on all ranks."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard.core import Observation, Shard
from mmnanguard.numerics.update.agree import merge
from mmnanguard.numerics.update.observe import combine


def seen(norm=0.0, shards=(), **keys):
    return Observation(1.0, grad_norm=norm, shards=shards, **keys)


def test_whole_gradients_are_replicas_and_never_add_up():
    assert merge([seen(3.0), seen(3.0)], seen(3.0)).grad_norm == 3.0


def test_parts_add_up_over_the_ranks_that_share_them():
    ranks = [seen(0.0, (Shard(0, 3.0),)), seen(0.0, (Shard(0, 4.0),))]
    assert merge(ranks, ranks[0]).grad_norm == 5.0


def test_whole_gradients_and_parts_together():
    ranks = [seen(12.0, (Shard(0, n),)) for n in (3.0, 4.0)]
    assert merge(ranks, ranks[1]).grad_norm == 13.0


def test_of_replicas_that_differ_the_largest_counts():
    """Ranks 0 and 1 share one replica, ranks 2 and 3 another replica."""
    ranks = [
        seen(0.0, (Shard(group, norm),))
        for group, norm in ((0, 3.0), (0, 4.0), (2, 6.0), (2, 8.0))
    ]
    for local in ranks:
        assert merge(ranks, local).grad_norm == 10.0


def test_parts_of_two_wholes():
    ranks = [
        seen(0.0, (Shard(0, 2.0), Shard(rank, norm)))
        for rank, norm in ((0, 1.0), (1, 1.0))
    ]
    assert merge(ranks, ranks[0]).grad_norm == pytest.approx(3.0)


def test_a_clip_norm_of_another_type():
    ranks = [
        seen(0.0, (Shard(0, 1.0, norm),), clip_norm=2.0) for norm in (3.0, 5.0)
    ]
    assert merge(ranks, ranks[0], 1.0).clip_norm == 10.0
    assert merge(ranks, ranks[0], math.inf).clip_norm == 5.0


@pytest.mark.parametrize('norm', [math.nan, math.inf, 1e30])
def test_a_bad_part_on_another_rank_makes_all_unclean(norm):
    ranks = [seen(0.0, (Shard(0, 1.0),)), seen(0.0, (Shard(0, norm),))]
    merged = merge(ranks, ranks[0])
    assert not merged.is_clean
    assert merged.bad_ranks == (1,)


def test_the_loss_that_is_told_is_the_bad_one():
    """Rank 0 has a bad buffer, rank 1 a bad loss, which takes precedence."""
    ranks = [
        Observation(2.0, buffers_are_finite=False),
        Observation(math.nan, loss_is_finite=False),
    ]
    for local in ranks:
        assert math.isnan(merge(ranks, local).loss)


def merge_one_by_one(ranks, local, norm_type):
    """Merge by definition, rank by rank."""
    bad = [rank for rank, seen in enumerate(ranks) if not seen.is_clean]
    culprits = [rank for rank in bad if not ranks[rank].forward_is_clean]
    loud = [rank for rank in bad if not ranks[rank].loss_is_finite]
    loss = sum(seen.loss for seen in ranks) / len(ranks)
    if bad:
        loss = ranks[(loud or culprits or bad)[0]].loss
    flags = (
        'loss_is_finite',
        'grad_is_finite',
        'buffers_are_finite',
        'input_is_finite',
        'weights_are_finite',
    )
    clip_norm = local.clip_norm
    if clip_norm is not None:
        clip_norm = whole_norm(ranks, 'clip_norm', 'clip_norm', norm_type)
    return replace(
        local,
        **{key: all(getattr(seen, key) for seen in ranks) for key in flags},
        num_bad_params=max(seen.num_bad_params for seen in ranks),
        num_params=max(seen.num_params for seen in ranks),
        loss=loss,
        grad_norm=whole_norm(ranks, 'grad_norm', 'norm', 2.0),
        clip_norm=clip_norm,
        bad_ranks=tuple(culprits or bad),
        shards=(),
    )


def whole_norm(ranks, key, key_of_part, norm_type):
    norms = [largest(getattr(seen, key) for seen in ranks)]
    for parts in zip(*(seen.shards for seen in ranks)):
        groups = {
            part.group: [
                getattr(other, key_of_part)
                for other in parts
                if other.group == part.group
            ]
            for part in parts
        }
        norms.append(largest(combine(g, norm_type) for g in groups.values()))
    return combine(norms, norm_type) if norms[1:] else norms[0]


def largest(norms):
    norms = list(norms)
    return math.nan if any(map(math.isnan, norms)) else max(norms)


def mostly(usual, *others):
    return st.sampled_from([usual] * 12 + list(others))


NORMS = st.floats(0, 1e3) | mostly(1.0, math.nan, math.inf, 1e20)
LOSSES = st.floats(-1e3, 1e3) | mostly(0.1, math.nan, -math.inf)


@st.composite
def situations(draw):
    """Draw observations; all ranks have a clip norm and parts, or none has."""
    num_ranks, num_parts = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    norms = NORMS if draw(st.booleans()) else st.floats(0, 1e3)
    flag = mostly(True, False) if draw(st.booleans()) else st.just(True)
    clip_norm = norms if draw(st.booleans()) else st.none()
    part = st.builds(Shard, st.integers(0, 2), norms, clip_norm)
    observation = st.builds(
        Observation,
        loss=LOSSES,
        loss_is_finite=flag,
        grad_norm=norms,
        grad_is_finite=flag,
        clip_norm=clip_norm,
        buffers_are_finite=flag,
        input_is_finite=flag,
        weights_are_finite=flag,
        num_bad_params=st.integers(0, 3),
        num_params=st.integers(0, 9),
        shards=st.tuples(*[part] * num_parts),
    )
    return draw(st.lists(observation, min_size=num_ranks, max_size=num_ranks))


@settings(max_examples=300, deadline=None)
@given(situations(), st.sampled_from([1.0, 2.0, 3.0, math.inf]))
def test_by_columns_is_what_it_is_by_ranks(ranks, norm_type):
    merged = merge(ranks, ranks[-1], norm_type)
    # Floats are written exactly, and NaN is as NaN.
    expected = merge_one_by_one(ranks, ranks[-1], norm_type)
    assert repr(merged) == repr(expected)


def test_a_negative_zero_keeps_its_sign():
    bad = Observation(loss=-0.0, grad_norm=math.nan)
    assert str(merge([bad], bad).loss) == '-0.0'
