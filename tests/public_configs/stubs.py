"""Stubs for the packages of projects that are not installed.

A config with ``read_base`` names classes, and a guard may look at them.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, Iterator, Optional, Sequence

# Packages that configs of public projects import.
PACKAGES = frozenset(
    """
    mmaction mmagic mmcls mmdet mmdet3d mmflow mmgen mmocr mmpose mmpretrain
    mmrotate mmseg mmselfsup mmtrack mmyolo xtuner
    bitsandbytes datasets flash_attn peft transformers
    """.split()  # noqa: SIM905
)


class StubModule(ModuleType):
    """A module that has any class."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        """Return a new class of that name."""
        if name.startswith('__'):
            raise AttributeError(name)
        stub = type(name, (), {'__module__': self.__name__})
        setattr(self, name, stub)
        return stub


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The finder of the stubs; asked only if no other finder has a module."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """Return the spec of a stub, or None for another package."""
        if fullname.split('.')[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(
        self, spec: importlib.machinery.ModuleSpec
    ) -> ModuleType:
        """Return a stub."""
        return StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stub has no code."""


@contextlib.contextmanager
def stubbed_packages() -> Iterator[None]:
    """Import stubs in place of packages that are not installed."""
    finder = StubFinder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, StubModule):
                del sys.modules[name]
