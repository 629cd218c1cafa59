"""Small parts of the sentences on rows."""

from typing import Sequence

__all__ = ['and_more', 'plural', 'samples_in_words']

NUM_NAMED = 2  # samples in a sentence


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


def samples_in_words(names: Sequence[str]) -> str:
    """Return "sample 'a'", or "samples 'a', 'b' and 2 more"."""
    listed = ', '.join(map("'{}'".format, names[:NUM_NAMED]))
    others = and_more(len(names) - NUM_NAMED)
    return f'{plural("sample", len(names))} {listed}{others}'
