import math

import numpy as np
import pytest

from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.datasets.audit_report import draw
from mmnanguard.datasets.distribution import MAX_POINTS, distribution, summary


def describe(samples):
    summaries = {}
    for index, sample in enumerate(samples):
        is_missing = sample is None
        summaries[index] = (
            None if is_missing else summary([np.asarray(sample)])
        )
    return distribution(summaries)


@pytest.mark.parametrize('largest', [MAX_POINTS, 400])
def test_equals_that_of_all_values_at_once(largest):
    """Samples have many sizes, and larger samples have larger numbers."""
    random = np.random.default_rng(0)
    sizes = random.integers(0, largest + 1, 200)
    samples = [random.normal(size, 3, size) for size in sizes]
    seen, values = describe(samples), np.concatenate(samples)
    assert seen['count'] == values.size
    assert math.isclose(seen['mean'], values.mean())
    assert math.isclose(seen['std'], values.std())
    assert seen['is_exact'] == (largest == MAX_POINTS)
    counts, _ = np.histogram(values, bins=50)
    slack = 0 if seen['is_exact'] else values.size / (2 * MAX_POINTS)
    below = np.cumsum(seen['histogram']['counts'])
    assert np.abs(below - np.cumsum(counts)).max() <= slack + 1e-6
    for share, value in zip((0.25, 0.5, 0.75), seen['quartiles']):
        slack = 0 if seen['is_exact'] else 1 / (2 * MAX_POINTS)
        assert (values < value).mean() <= share + slack
        assert (values <= value).mean() >= share - slack


def test_what_is_not_finite_or_not_there():
    seen = describe([[1.0, math.nan, math.inf], None, [], [3.0]])
    assert (seen['count'], seen['nonfinite'], seen['missing']) == (2, 2, 1)
    assert (seen['min_sample'], seen['max_sample']) == (0, 3)
    assert describe([None, [math.nan]]) == dict(
        count=0, nonfinite=1, missing=1
    )


def test_numbers_whose_squares_overflow():
    """Squares of garbage overflow: the report shows that in strict JSON."""
    seen = describe([[1e300, -1e300], [1.7e308, 1.7e308], [-1.7e308]])
    assert seen['std'] == math.inf
    assert seen['max'] == 1.7e308
    assert 'histogram' not in seen
    assert '"std": "inf"' in to_json(seen)


@pytest.mark.parametrize(
    ('samples', 'is_drawn'),
    [
        ([1_700_000_000_000], True),
        ([20231122123456789], False),  # no float is 0.5 above it
        ([1.0, np.nextafter(1.0, 2.0)], False),
        ([0, 1e300], True),
        ([-8e307, 8e307], False),
    ],
)
def test_a_histogram_where_there_can_be_one(samples, is_drawn, tmp_path):
    seen = describe([[value] for value in samples])
    assert ('histogram' in seen) == is_drawn
    if is_drawn:
        draw('x', seen, tmp_path / 'x.png')


def test_other_kinds_of_numbers():
    seen = describe([np.array([True, False]), np.array([3 + 4j]), np.uint8(7)])
    assert (seen['count'], seen['max'], seen['mean']) == (4, 7.0, 3.25)
