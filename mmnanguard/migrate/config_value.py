"""The types of a config's values."""

from typing import Any, Dict

__all__ = ['ConfigDict', 'ConfigValue']

# The value of a config's key: usually a builtin, but the author of a config
# may put any object into it.
ConfigValue = Any
ConfigDict = Dict[str, ConfigValue]
