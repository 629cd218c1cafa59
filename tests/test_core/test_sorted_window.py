import numpy as np
import pytest

from mmnanguard.core.clipping.window import SortedWindow


@pytest.mark.parametrize('size', [1, 2, 7, 40])
@pytest.mark.parametrize('percent', [0, 1, 10, 33.3, 50, 99, 100])
def test_it_is_numpys_percentile(size, percent):
    # Few different numbers, so that some are equal.
    numbers = np.random.default_rng(size).integers(0, 9, 60) / 4
    window = SortedWindow()
    for index, number in enumerate(numbers.tolist()):
        last = [*numbers[max(0, index - size) : index], number]
        assert window.percentile(percent, number) == pytest.approx(
            np.percentile(last, percent), rel=1e-12
        )
        window = window.after(number, size)
        assert window.row == tuple(numbers[: index + 1][-size:])
        assert window.ordered == tuple(sorted(window.row))
        assert window == SortedWindow.of(numbers[: index + 1].tolist(), size)


def test_what_was_is_left_as_it_was():
    window = SortedWindow().after(2.0, 3).after(1.0, 3)
    window.after(3.0, 3)
    assert window == SortedWindow((2.0, 1.0), (1.0, 2.0))
