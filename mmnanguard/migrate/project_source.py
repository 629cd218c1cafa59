"""The classes of a config's own project, which are read and never imported."""

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional

from mmnanguard.core.hook_source import HookSource

from .config_value import ConfigValue

__all__ = ['find_hook']

# A folder with one of these is the root of a project.
MARKS = ('.git', 'setup.py', 'pyproject.toml', 'setup.cfg')
CLASS = re.compile(r'^class +(\w+)', re.MULTILINE)
# A project has fewer files; a folder with more is no single project.
MAX_FILES = 5000


def find_hook(
    path: Path, cfg: Mapping[str, ConfigValue], name: str
) -> Optional[HookSource]:
    """Return the source of a hook's class; None if it is not found.

    The class is looked for in the config, in the modules that the config
    imports, and in all modules of the project that the config lies in.

    Args:
        path: The config.
        cfg: Its value, of which ``custom_imports`` is read.
        name: The name of the class.
    """
    for file in files_of(path, cfg, name):
        try:
            text = file.read_text(encoding='utf-8')
            if name in CLASS.findall(text):
                return HookSource.of_text(text, name)
        except (OSError, ValueError, SyntaxError):
            # A file of Python 2, or one that is no text.
            continue
    return None


def files_of(
    path: Path, cfg: Mapping[str, ConfigValue], name: str
) -> Iterator[Path]:
    """Yield the files that may hold a class, the nearest first."""
    yield path
    for module in imported_modules(path, cfg):
        for folder in path.resolve().parents:
            place = folder.joinpath(*module.split('.'))
            if place.with_suffix('.py').is_file():
                yield place.with_suffix('.py')
            elif (place / '__init__.py').is_file():
                yield from sorted(place.glob('*.py'))
    for folder in path.resolve().parents:
        if any((folder / mark).exists() for mark in MARKS):
            file = classes_below(folder).get(name)
            if file is not None:
                yield file
            return


def imported_modules(path: Path, cfg: Mapping[str, ConfigValue]) -> List[str]:
    """Return the modules that a config imports, or has MMEngine import."""
    custom = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [custom] if isinstance(custom, str) else list(custom)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return modules


@lru_cache(maxsize=4)
def classes_below(folder: Path) -> Dict[str, Path]:
    """Return the file of each class of a project, by the class's name."""
    files: Dict[str, Path] = {}
    for number, file in enumerate(folder.rglob('*.py')):
        if number == MAX_FILES:
            break
        try:
            text = file.read_text(encoding='utf-8')
        except (OSError, ValueError):
            continue
        for name in CLASS.findall(text):
            files.setdefault(name, file)
    return files
