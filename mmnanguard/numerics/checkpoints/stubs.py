"""Stubs in place of objects that only the ranks that saved them can load.

FSDP saves ShardedTensor and DTensor objects, whose classes need the process
group of the run. A scan in a single process needs only the tensors in them.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Tuple, Union

import torch

__all__ = ['STUBS', 'stub_missing_shards']

# The module of ``getattr``, by its name in Python 3 and in pickles of
# protocol 2.
BUILTINS = ('builtins', '__builtin__')


# An entry of PyTorch's allow-list: an object, perhaps with its name in files.
SafeGlobal = Union[Callable[..., object], Tuple[Callable[..., object], str]]


class Stub:
    """An object that keeps its pickled content and does nothing else."""

    content: object

    def __new__(cls, *args: object) -> 'Stub':
        self = super().__new__(cls)
        self.content = args
        return self

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.content = state


class TensorStub(torch.Tensor):
    """A tensor with a shape and no memory, whose shards are elsewhere."""

    content: object = ()

    def __setstate__(self, state: object) -> None:
        self.content = state

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: object, *_: object, **__: object
    ) -> object:
        raise TypeError(f'{func} needs the parts of a sharded tensor')


STUBS = (Stub, TensorStub)


@contextmanager
def stub_missing_shards(file: Path) -> Iterator[None]:
    """Let ``torch.load`` read the file that one rank of FSDP saved.

    FSDP saves tensors inside objects of ``torch.distributed``, which can be
    loaded only by the ranks that saved them. Within this context a stub
    replaces each class of that module that the file names, so that no code
    of the module is run. Does nothing for PyTorch before 2.6.

    Args:
        file: A zip file, as ``torch.save`` writes it.
    """
    serialization = torch.serialization
    if not hasattr(serialization, 'get_unsafe_globals_in_checkpoint'):
        yield
        return
    unsafe = serialization.get_unsafe_globals_in_checkpoint(str(file))
    names = [name for name in unsafe if name.startswith('torch.distributed.')]
    before = serialization.get_safe_globals()
    # The allow-list's replacement of getattr is itself replaced below.
    getters: List[Callable[[object, str], object]] = []
    others: List[SafeGlobal] = []
    for entry in before:
        if isinstance(entry, tuple) and entry[1].endswith('.getattr'):
            getters.append(entry[0])
        else:
            others.append(entry)

    def get(owner: object, name: str) -> object:
        """Replace ``getattr``, by which pickle finds nested classes."""
        # A nested class of a stub is a stub as well.
        if owner in STUBS:
            return Stub
        if not getters:
            raise ValueError(f'the file asks for {name!r} of {owner!r}')
        return getters[0](owner, name)

    try:
        serialization.clear_safe_globals()
        # An entry may be a pair of an object and the name in the file.
        serialization.add_safe_globals([*others, (Stub, 'Stub')])
        for module in BUILTINS:
            serialization.add_safe_globals([(get, f'{module}.getattr')])
        for name in names:
            serialization.add_safe_globals([(kind_of(name), name)])
        yield
    # The allow-list is global: a later torch.load must not get stubs.
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def kind_of(name: str) -> type:
    """Return the stub for a class with this name."""
    return TensorStub if name.endswith('Tensor') else Stub
