"""``torch.load`` that runs no code of the file.

Before PyTorch 2.6, ``weights_only=True`` knows neither numpy's arrays nor
MMEngine's HistoryBuffer, and cannot be told of them. There, this module takes
the place of ``pickle``: it knows what PyTorch does, and :data:`ALLOWED`.
"""

import codecs
import pickle
import sys
from collections import Counter
from os import PathLike
from typing import IO, Any, ClassVar, Dict, Union

import torch
from torch import _weights_only_unpickler

__all__ = ['ALLOWED', 'HAS_ALLOW_LIST', 'load_plain']

HAS_ALLOW_LIST = hasattr(
    torch.serialization, 'get_unsafe_globals_in_checkpoint'
)
# By the name that a file has for it; at first what later versions know.
ALLOWED: Dict[str, Any] = {
    '_codecs.encode': codecs.encode,  # of bytes, as numpy's arrays have them
    'collections.Counter': Counter,
    'torch.device': torch.device,
    **{
        f'builtins.{kind.__name__}': kind for kind in (bytearray, complex, set)
    },
    **{str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)},
}


def load_plain(path: Union[str, 'PathLike[str]'], **keys: Any) -> Any:
    """On the CPU; what it may hold beyond tensors and builtins is known since
    ``mmnanguard.safe_load.allow_mmengine_checkpoints`` was called.
    """
    if HAS_ALLOW_LIST:
        keys.update(weights_only=True)
    else:
        keys.update(weights_only=False, pickle_module=sys.modules[__name__])
    return torch.load(str(path), map_location='cpu', **keys)


PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(PythonUnpickler):
    """Makes, calls and fills nothing but what is allowed."""

    dispatch: ClassVar[Dict[int, Any]] = dict(PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        # Python 2 called it so, whose kind of pickle torch.save writes.
        module = 'builtins' if module == '__builtin__' else module
        known = all_allowed()
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'Unsupported global {module}.{name}')
        return known[f'{module}.{name}']

    def load_build(self) -> None:
        check('state of a', type(self.stack[-2]))
        super().load_build()

    def load_reduce(self) -> None:
        check('call of', self.stack[-2])
        super().load_reduce()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.REDUCE[0]] = load_reduce


def check(what: str, value: Any) -> None:
    if not any(value is each for each in all_allowed().values()):
        raise pickle.UnpicklingError(f'Unsupported {what} {value!r}')


def all_allowed() -> Dict[str, Any]:
    return {**_weights_only_unpickler._get_allowed_globals(), **ALLOWED}


def load(file: IO[bytes], **keys: Any) -> Any:
    return Unpickler(file, **keys).load()
