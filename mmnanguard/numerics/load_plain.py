"""``torch.load`` that runs no code of the file.

Before PyTorch 2.6, ``weights_only=True`` knows neither numpy's arrays nor
MMEngine's HistoryBuffer, and cannot be told of them. There, this module takes
the place of ``pickle``: it knows what PyTorch does, and :data:`ALLOWED`.
"""

import codecs
import pickle
import sys
from os import PathLike
from typing import IO, Any, ClassVar, Dict, Union

import torch
from torch import _weights_only_unpickler

__all__ = ['ALLOWED', 'HAS_ALLOW_LIST', 'load_plain']

HAS_ALLOW_LIST = hasattr(
    torch.serialization, 'get_unsafe_globals_in_checkpoint'
)
# By the name that a file has for it; numpy's arrays need the first.
ALLOWED: Dict[str, Any] = {'_codecs.encode': codecs.encode}


def load_plain(path: Union[str, 'PathLike[str]'], **keys: Any) -> Any:
    """On the CPU; what it may hold beyond tensors and builtins is known since
    ``mmnanguard.safe_load.allow_mmengine_checkpoints`` was called.
    """
    if HAS_ALLOW_LIST:
        keys['weights_only'] = True
    else:
        keys['pickle_module'] = sys.modules[__name__]
    return torch.load(str(path), map_location='cpu', **keys)


PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(PythonUnpickler):
    """Makes, calls and fills nothing but what is allowed."""

    dispatch: ClassVar[Dict[int, Any]] = dict(PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        known = all_allowed()
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'Unsupported global {module}.{name}')
        return known[f'{module}.{name}']

    def load_build(self) -> None:
        kind = type(self.stack[-2])
        if kind not in all_allowed().values():
            raise pickle.UnpicklingError(f'Unsupported state of a {kind}')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def all_allowed() -> Dict[str, Any]:
    return {**_weights_only_unpickler._get_allowed_globals(), **ALLOWED}


def load(file: IO[bytes], **keys: Any) -> Any:
    return Unpickler(file, **keys).load()
