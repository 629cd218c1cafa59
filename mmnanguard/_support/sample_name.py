"""The name that a sample has in all messages and events."""

from typing import Mapping, Optional

__all__ = ['sample_name']

# The first of these keys that a sample has gives its name. The path comes
# first, because it says most to a reader.
ID_KEYS = ('img_path', 'img_id', 'sample_idx')


def sample_name(info: Mapping[str, object]) -> Optional[str]:
    """Return the name of a sample from its meta information.

    Returns:
        The image's path as it is, or else a key and its value such as
        'img_id 7'; None if there is no such key.
    """
    for key in ID_KEYS:
        value = info.get(key)
        if value is None:
            continue
        # A path speaks for itself; a bare number needs its key.
        if key == 'img_path':
            return str(value)
        return f'{key} {value}'
    return None
