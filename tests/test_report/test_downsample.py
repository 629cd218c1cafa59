"""A downsampled million keeps the first, the last and the extremes."""

import math
import random
from collections import Counter

import pytest

from mmnanguard.report.downsample import (
    EvenSample,
    Tally,
    count_by_bin,
    downsample_curve,
)


@pytest.mark.parametrize('num', [1, 2, 3, 7, 8, 9, 64, 1000, 1001])
def test_spread(num):
    spread = EvenSample()
    for item in range(num):
        spread.add(item)
        if len(spread) > 8:
            spread.drop_every_second()
    items = spread.items
    assert items[0] == 0
    assert items[-1] == num - 1
    assert min(num, 5) <= len(items) <= 9
    coverage_warnings = {b - a for a, b in zip(items, items[1:-1])}
    assert len(coverage_warnings) <= 1  # even distances, but for the last one
    assert spread.num == num


def test_thinned_at_any_time_the_last_stays():
    rng = random.Random(0)
    spread = EvenSample()
    for item in range(500):
        spread.add(item)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            spread.drop_every_second()
        assert spread.items[0] == 0
        assert spread.items[-1] == item
        assert spread.items == sorted(set(spread.items))


def test_tally_forgets_the_rare():
    rng = random.Random(0)
    names = ['often'] * 500 + [f'rare {number}' for number in range(1000)]
    rng.shuffle(names)
    tally, exact = Tally(100), Tally(2000)
    for name in names:
        tally.add([name])
        exact.add([name])
    assert exact.most_common(1) == [('often', 500)]
    assert exact.num_forgotten == 0
    (first,) = tally.most_common(1)
    assert first[0] == 'often'
    assert 500 - tally.num_forgotten <= first[1] <= 500
    assert exact['rare 7'] == 1


def test_a_short_curve_is_whole():
    assert downsample_curve([1, 5], [2.0, math.nan]) == ([1, 5], [2.0, None])
    assert downsample_curve([], []) == ([], [])


@pytest.mark.parametrize('seed', range(5))
def test_a_thinned_curve_keeps_its_looks(seed):
    rng = random.Random(seed)
    num, num_bins = 10_000, 100
    values = [rng.gauss(0, 1) for _ in range(num)]
    values[rng.randrange(num)] = 1e9
    values[rng.randrange(num)] = -1e9
    for place in (3, 5000, 5001, 9999):
        values[place] = rng.choice([math.nan, math.inf, -math.inf])
    iters = list(range(1, num + 1))

    thin_iters, thin = downsample_curve(iters, values, num_bins)

    assert len(thin) <= 5 * num_bins
    assert thin_iters == sorted(set(thin_iters))
    finite = [value for value in thin if value is not None]
    assert (min(finite), max(finite)) == (-1e9, 1e9)
    assert thin.count(None) == 3  # two of them are in one bin
    for begin in range(0, num, num // num_bins):
        bin_ = [v for v in values[begin : begin + 100] if math.isfinite(v)]
        kept = {
            value
            for iter_, value in zip(thin_iters, thin)
            if begin < iter_ <= begin + 100 and value is not None
        }
        assert {bin_[0], min(bin_), max(bin_), bin_[-1]} == kept


def test_bins_count_all():
    rng = random.Random(0)
    iters = [rng.randint(1, 95) for _ in range(1000)]
    counts = count_by_bin(iters, 1, 10, 10)
    expected = Counter((iter_ - 1) // 10 for iter_ in iters)
    assert counts == [expected[number] for number in range(10)]
    assert count_by_bin([0, 96, 1000], 1, 10, 10) == [1] + [0] * 8 + [2]
