"""Stubs in place of objects that only the ranks that saved them can load."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List

import torch

__all__ = ['STUBS', 'stub_missing_shards']

# Python 3's name, and the name in pickles of protocol 2.
BUILTINS = ('builtins', '__builtin__')


class Stub:
    """An object that keeps its pickled content and does nothing with it."""

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
    names = serialization.get_unsafe_globals_in_checkpoint(str(file))
    names = [name for name in names if name.startswith('torch.distributed.')]
    before = serialization.get_safe_globals()
    # The allow-list's replacement of getattr is itself replaced below.
    getters: List[Any] = []
    others: List[Any] = []
    for entry in before:
        is_getter = isinstance(entry, tuple) and entry[1].endswith('.getattr')
        (getters if is_getter else others).append(entry)

    def get(owner: object, name: str) -> object:
        """Stand in for ``getattr``, by which pickle finds nested classes."""
        if owner in STUBS:
            return Stub
        if not getters:
            raise ValueError(f'the file asks for {name!r} of {owner!r}')
        return getters[0][0](owner, name)

    try:
        serialization.clear_safe_globals()
        # An entry may be a pair of an object and the name in the file.
        serialization.add_safe_globals([*others, (Stub, 'Stub')])
        for module in BUILTINS:
            serialization.add_safe_globals([(get, f'{module}.getattr')])
        for name in names:
            serialization.add_safe_globals([(kind_of(name), name)])
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def kind_of(name: str) -> type:
    """Return the stub for a class, by the class's name."""
    return TensorStub if name.endswith('Tensor') else Stub
