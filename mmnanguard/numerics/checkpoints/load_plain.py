"""``torch.load`` that runs no code of the file.

MMEngine's checkpoints hold numpy's arrays and objects of HistoryBuffer, which
``weights_only=True`` does not load before PyTorch 2.6. For these versions this
module takes the place of ``pickle``: it allows the objects that PyTorch
allows, and those of :data:`ALLOWED`.
"""

import codecs
import pickle
import sys
import warnings
import zipfile
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import IO, Any, Callable, ClassVar, Dict, List, Union

import torch
from torch import _weights_only_unpickler

__all__ = [
    'ALLOWED',
    'HAS_ALLOW_LIST',
    'SAFE_GLOBALS',
    'check_form',
    'load_plain',
    'name_of',
]

# Whether PyTorch is 2.6 or newer, by a function that came with it.
HAS_ALLOW_LIST = hasattr(
    torch.serialization, 'get_unsafe_globals_in_checkpoint'
)
# Objects by the name that a pickle has for them. These are the objects that
# PyTorch 2.6 allows; ``mmnanguard.safe_load`` adds MMEngine's.
ALLOWED: Dict[str, object] = {
    '_codecs.encode': codecs.encode,  # numpy's arrays hold encoded bytes
    'collections.Counter': Counter,
    'torch.device': torch.device,
    'builtins.bytearray': bytearray,
    'builtins.complex': complex,
    'builtins.set': set,
    **{str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)},
}
# The arguments of torch.serialization.add_safe_globals, which takes the place
# of the table from PyTorch 2.6 on; ``mmnanguard.safe_load`` fills it, too.
SAFE_GLOBALS: List[Any] = []


def load_plain(path: Union[str, 'PathLike[str]'], **keys: Any) -> Any:
    """Load a file on the CPU without running any code of it.

    Besides tensors and builtins, the file may hold the objects that a call of
    ``mmnanguard.safe_load.allow_mmengine_checkpoints`` has allowed.

    Args:
        path: A file that ``torch.save`` wrote.
        **keys: More arguments of ``torch.load``.

    Raises:
        ValueError: If the file is empty, truncated or no pickle.
        pickle.UnpicklingError: If the file holds anything else.
    """
    check_form(Path(path))
    if HAS_ALLOW_LIST:
        # Each time: the end of torch.serialization.safe_globals, which
        # onedl-mmengine uses, forgets what others have allowed as well.
        # What stands for one of them already (see stubs) stays.
        known = set(map(name_of, torch.serialization.get_safe_globals()))
        torch.serialization.add_safe_globals(
            [entry for entry in SAFE_GLOBALS if name_of(entry) not in known]
        )
        keys.update(weights_only=True)
    else:
        # torch.load takes Unpickler and load from the module that it is given.
        keys.update(weights_only=False, pickle_module=sys.modules[__name__])
    with warnings.catch_warnings():
        # PyTorch warns of files that it did not write, before it fails.
        warnings.simplefilter('ignore')
        return torch.load(str(path), map_location='cpu', **keys)


def name_of(entry: Any) -> str:
    """Return the name that files have for an entry of the allow-list."""
    if isinstance(entry, tuple):
        return str(entry[1])
    return f'{entry.__module__}.{entry.__qualname__}'


def check_form(path: Path) -> bool:
    """Return whether a file is a zip file; otherwise it is a pickle.

    Raises:
        ValueError: If the file is empty, truncated or neither.
    """
    # torch.load's own errors on such files do not say what is wrong.
    with path.open('rb') as stream:
        head = stream.read(4)
    # True only if the end of the file is there, where a zip file has its
    # directory. Its first bytes alone do not show that it was cut off.
    is_zip = zipfile.is_zipfile(path)
    if not head:
        raise ValueError('it is empty')
    if head == b'PK\3\4' and not is_zip:
        raise ValueError('it is truncated: its end is not that of a zip file')
    # A pickle of protocol 2 (torch.save's) or above begins with this byte.
    if not is_zip and head[:1] != b'\x80':
        raise ValueError('it is neither a zip file nor a pickle')
    return is_zip


# Pickle's unpickler in Python, because the unpickler in C has no methods for
# single opcodes to override. Type stubs do not describe this class.
PythonUnpickler: Any = pickle._Unpickler


class Unpickler(PythonUnpickler):  # type: ignore[misc]
    """An unpickler that creates, calls and fills allowed objects only."""

    # A copy: the table of the base class serves all pickles of the process.
    dispatch: ClassVar[Dict[int, Callable[..., None]]] = dict(
        PythonUnpickler.dispatch
    )

    def find_class(self, module: str, name: str) -> object:
        """Return an allowed object by name, without importing anything."""
        # torch.save writes pickles of protocol 2, which has Python 2's name.
        if module == '__builtin__':
            module = 'builtins'
        known = all_allowed()
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'Unsupported global {module}.{name}')
        return known[f'{module}.{name}']

    def load_build(self) -> None:
        """Let only allowed classes set the state of an object."""
        check('state of a', type(self.stack[-2]))
        super().load_build()

    def load_reduce(self) -> None:
        """Call only allowed functions and classes."""
        check('call of', self.stack[-2])
        super().load_reduce()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.REDUCE[0]] = load_reduce


def check(use: str, value: object) -> None:
    """Raise an UnpicklingError if an object is not allowed.

    Args:
        use: The use that the pickle makes of the object, for the message.
        value: The object.
    """
    # By identity: an object may compare equal to anything.
    allowed = map(id, all_allowed().values())
    if id(value) not in set(allowed):
        raise pickle.UnpicklingError(f'Unsupported {use} {value!r}')


def all_allowed() -> Dict[str, object]:
    """Return PyTorch's own allowed objects and those of :data:`ALLOWED`."""
    return {**_weights_only_unpickler._get_allowed_globals(), **ALLOWED}


def load(file: IO[bytes], **keys: object) -> object:
    """Load a pickle; torch.load calls this in place of ``pickle.load``."""
    return Unpickler(file, **keys).load()
