"""Small parts of the sentences on rows."""

from typing import Sequence

__all__ = ['and_more', 'plural', 'ranks_in_words', 'samples_in_words']

NUM_NAMED = 2  # samples or ranks in a sentence


def and_more(count: int) -> str:
    """Return ' and 3 more' for a count of 3, and '' if nothing is left."""
    if count <= 0:
        return ''
    return f' and {count} more'


def plural(noun: str, count: int) -> str:
    """Return the noun in the form that fits the count."""
    if count == 1:
        return noun
    return f'{noun}s'


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return "rank 1", or "ranks 0, 1 and 6 more"."""
    listed = ', '.join(map(str, ranks[:NUM_NAMED]))
    others = and_more(len(ranks) - NUM_NAMED)
    return f'{plural("rank", len(ranks))} {listed}{others}'


def samples_in_words(names: Sequence[str]) -> str:
    """Return "sample 'a'", or "samples 'a', 'b' and 2 more"."""
    listed = ', '.join(map("'{}'".format, names[:NUM_NAMED]))
    others = and_more(len(names) - NUM_NAMED)
    return f'{plural("sample", len(names))} {listed}{others}'
