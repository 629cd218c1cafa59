"""What several ranks saw becomes one observation, the same on all."""

import math

import pytest

from mmnanguard.core import Observation, Shard
from mmnanguard.numerics.agree import from_row, merge, to_row


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
    """Ranks 0 and 1 share one whole, 2 and 3 another copy of it."""
    ranks = [
        seen(0.0, (Shard(group, norm),))
        for group, norm in ((0, 3.0), (0, 4.0), (2, 6.0), (2, 8.0))
    ]
    for own in ranks:
        assert merge(ranks, own).grad_norm == 10.0


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


@pytest.mark.parametrize('clip_norm', [None, 7.0])
def test_what_is_exchanged_arrives(clip_norm):
    shards = (Shard(2, 1.5, clip_norm), Shard(0, 0.5, clip_norm))
    sent = seen(
        2.5,
        shards,
        clip_norm=clip_norm,
        loss_is_finite=False,
        num_bad_params=3,
        num_params=9,
    )
    assert from_row(to_row(sent), seen(clip_norm=clip_norm)) == sent


def test_the_loss_that_is_told_is_the_bad_one():
    """Rank 0 has a bad buffer, rank 1 the bad loss that goes before it."""
    ranks = [
        Observation(2.0, buffers_are_finite=False),
        Observation(math.nan, loss_is_finite=False),
    ]
    for own in ranks:
        assert math.isnan(merge(ranks, own).loss)
