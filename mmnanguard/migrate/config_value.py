"""The types of a config's values, and selections of its entries."""

from typing import Any, Container, Dict, Iterable, Mapping

__all__ = ['ConfigDict', 'ConfigValue', 'leave_out', 'select']

# The value of a config's key: usually a builtin, but the author of a config
# may put any object into it.
ConfigValue = Any
ConfigDict = Dict[str, ConfigValue]


def select(
    config: Mapping[str, ConfigValue], keys: Iterable[str]
) -> ConfigDict:
    """Return the entries under these keys, in the order of the keys.

    A key that the config does not have is left out.
    """
    return {key: config[key] for key in keys if key in config}


def leave_out(
    config: Mapping[str, ConfigValue], keys: Container[str]
) -> ConfigDict:
    """Return the entries under all other keys, in the config's order."""
    return {key: item for key, item in config.items() if key not in keys}
