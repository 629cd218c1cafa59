"""The smallest subset fails, and no item can be left out of it."""

from hypothesis import given
from hypothesis import strategies as st

from mmnanguard._support.smallest_subset import smallest_subset

NUMBERS = range(20)
SETS = st.sets(st.sampled_from(NUMBERS), min_size=1)


@given(SETS)
def test_what_fails_together_is_found(culprits):
    subset = smallest_subset(NUMBERS, lambda items: culprits <= {*items})
    assert subset == sorted(culprits)


@given(st.lists(SETS, min_size=1, max_size=4), st.integers(0, 3))
def test_no_item_can_be_left_out(reasons, num_needed):
    def fails(items):
        # Not monotone: too many hide it again, as in a mean.
        is_in = any(reason <= {*items} for reason in reasons)
        return is_in and (len(items) > 15 or len(items) >= num_needed)

    subset = smallest_subset(NUMBERS, fails)
    assert fails(subset)
    for item in subset:
        rest = [other for other in subset if other != item]
        assert not rest or not fails(rest)


def test_one_culprit_takes_few_tries():
    tries = []

    def fails(items):
        tries.append(items)
        return 777 in items

    assert smallest_subset(range(1024), fails) == [777]
    assert len(tries) <= 20
