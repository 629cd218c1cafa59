"""The name that a sample has in all messages and events."""

from typing import Mapping, Optional

__all__ = ['SampleKey', 'sample_name']

# The first of these keys that a sample has gives its name. New keys go to the
# end: names in the files of earlier versions stay valid.
ID_KEYS = (
    *('img_path', 'img_id', 'sample_idx', 'lidar_path', 'filename'),
    *('file_name', 'video_id'),
)
# A path speaks for itself; any other value needs its key.
PATH_KEYS = ('img_path', 'lidar_path', 'filename', 'file_name')


class SampleKey:
    """The key of the meta information that the user has chosen for names.

    Attributes:
        chosen: The key, which comes before all others; None for no choice.
    """

    chosen: Optional[str] = None


def sample_name(info: Mapping[str, object]) -> Optional[str]:
    """Return the name of a sample from its meta information.

    The user's key comes first. A sample of several cameras has a list of
    paths, of which the first is taken.

    Returns:
        The path as it is, or else a key and its value such as 'img_id 7';
        None if there is no such key.
    """
    for key in (SampleKey.chosen, *ID_KEYS):
        value = None if key is None else info.get(key)
        if isinstance(value, (list, tuple)):
            value = value[0] if value else None
        if value is None:
            continue
        if key in PATH_KEYS:
            return str(value)
        return f'{key} {value}'
    return None
