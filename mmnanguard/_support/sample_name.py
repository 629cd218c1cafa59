from typing import Any, Mapping, Optional

__all__ = ['sample_name']

# Most telling first; the first one that a sample has is its name.
ID_KEYS = ('img_path', 'img_id', 'sample_idx')


def sample_name(info: Mapping[str, Any]) -> Optional[str]:
    """How a sample is called wherever it is told of, by its metainfo: its
    path as it is, else the key and the value; None if it has no name.
    """
    for key in ID_KEYS:
        value = info.get(key)
        if value is not None:
            return str(value) if key == 'img_path' else f'{key} {value}'
    return None
