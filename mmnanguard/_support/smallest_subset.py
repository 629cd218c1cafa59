"""The search for a smallest subset that fails: delta debugging."""

from typing import Callable, List, Sequence, Tuple

__all__ = ['smallest_subset']


def smallest_subset(
    items: Sequence[int], fails: Callable[[List[int]], bool]
) -> List[int]:
    """Return a minimal failing subset: removing any item makes it pass.

    Args:
        items: Items that fail together.
        fails: Whether a subset, in the order of ``items``, fails. It is
            called about ``len(items) ** 2`` times at worst, and about
            ``2 * log2(len(items))`` times for a single culprit.

    References:
        Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
        Input", 2002, https://doi.org/10.1109/32.988498
    """
    items, num_parts = list(items), 2
    while len(items) > 1:
        parts, rests = split(items, num_parts)
        part = next(filter(fails, parts), None)
        if part is not None:
            items, num_parts = part, 2
            continue
        rest = None
        # With two parts, each is the rest of the other and was tried above.
        if num_parts > 2:
            rest = next(filter(fails, rests), None)
        if rest is not None:
            # The parts stay as large as they were: smaller parts are tried
            # only once these are exhausted.
            items, num_parts = rest, num_parts - 1
        elif num_parts == len(items):
            break
        else:
            num_parts = min(2 * num_parts, len(items))
    return items


def split(
    items: List[int], num_parts: int
) -> Tuple[List[List[int]], List[List[int]]]:
    """Return equal parts of a list, and the rest of the list to each part."""
    parts, rests = [], []
    for number in range(num_parts):
        begin = len(items) * number // num_parts
        end = len(items) * (number + 1) // num_parts
        parts.append(items[begin:end])
        rests.append(items[:begin] + items[end:])
    return parts, rests
