"""Small parts of the sentences on rows."""

__all__ = ['and_more', 'plural']


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
