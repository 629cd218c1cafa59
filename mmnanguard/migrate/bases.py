"""The bases that a config inherits from."""

import ast
import os
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Set

from mmnanguard.core import GuardConfigError
from mmnanguard.read_config import read_config

from .config_value import ConfigDict, ConfigValue
from .migration import TARGETS
from .model_keys import move_to_model
from .source import Source

__all__ = [
    'ConfigFile',
    'assigned_names',
    'base_names',
    'direct_bases',
    'find_rival',
    'load',
    'needs_hooks',
    'read_file',
    'unmigrated_bases',
]


def load(path: ConfigValue) -> ConfigDict:
    """Return the value of a config, inherited keys included, as builtins.

    The modules of ``custom_imports`` are not imported: the modules of a 1.x
    project cannot be imported beside MMEngine.

    Raises:
        GuardConfigError: If MMEngine cannot read the config.
    """
    try:
        cfg = read_config(path, import_custom_modules=False)
    except GuardConfigError:
        # The reader's own message names the file already.
        raise
    except Exception as error:
        # A config is a program: it may raise any exception. MMEngine leaves
        # a temporary file open in its frames.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)
            traceback.clear_frames(error.__traceback__)
        advice = ''
        if 'Duplicate key' in str(error):
            advice = ' Keep each of them in one of these files, or set it in '
            advice += 'the config that inherits them.'
        raise GuardConfigError(
            f'MMEngine cannot read {path}: {type(error).__name__}: {error}'
            f'{advice}'
        ) from error
    values: ConfigDict = cfg.to_dict()
    move_to_model(values)
    return values


def assigned_names(assignment: ast.Assign) -> List[str]:
    """Return the plain names on the left of an assignment."""
    names = []
    for target in assignment.targets:
        # A target such as model['lr'] or (a, b) sets no key of the config.
        if isinstance(target, ast.Name):
            names.append(target.id)
    return names


def base_names(path: Path) -> List[str]:
    """Return the bases that a file names, as it spells them.

    Raises:
        GuardConfigError: If ``_base_`` is computed.
    """
    # The file is parsed and not executed, because MMEngine itself reads _base_
    # from the source before it runs the file.
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and '_base_' in assigned_names(node):
            try:
                names = ast.literal_eval(node.value)
            except ValueError as error:
                raise GuardConfigError(
                    f'{path}: _base_ is computed; write its files as strings.'
                ) from error
            if isinstance(names, str):
                return [names]
            return list(names)
    return []


def direct_bases(path: Path) -> List[Path]:
    """Return the Python files that a file names as bases.

    Bases in a package (``mmpretrain::...``) are not the user's to migrate.
    """
    bases = []
    for name in base_names(path):
        base = Path(os.path.abspath(path.parent / name))
        if base.suffix == '.py' and '::' not in name:
            bases.append(base)
    return bases


def unmigrated_bases(path: Path) -> List[Path]:
    """Return the files that a config reads and that are not migrated with it.

    These are bases that are no Python files, and the modules that
    ``read_base`` imports relative to the config. A module stands for itself:
    the config repeats what it changes.
    """
    bases = []
    for name in base_names(path):
        base = Path(os.path.abspath(path.parent / name))
        if base.suffix != '.py' and '::' not in name:
            bases.append(base)
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if not isinstance(node, ast.With):
            continue
        for module in node.body:
            # MMEngine allows no other statement below read_base.
            if isinstance(module, ast.ImportFrom) and module.level:
                folder = path.parents[module.level - 1]
                name = (module.module or '').replace('.', '/')
                bases.append(folder / f'{name}.py')
    return bases


def load_bases(path: Path) -> ConfigDict:
    """Return the merged value of all bases."""
    made: ConfigDict = {}
    for name in base_names(path):
        # 'mmpretrain::...' is a config in a package, not a path.
        if '::' in name:
            made.update(load(name))
        else:
            made.update(load(path.parent / name))
    return made


@dataclass
class ConfigFile:
    """A config as it is before the migration.

    Attributes:
        path: The absolute path of the file.
        text: The text of the file, with its own line ends.
        bases: The Python files that it inherits from, without theirs.
        names: The names that the file itself sets or changes.
        dead: The keys of 1.x that have no effect, because the file sets a key
            of 2.x in their place.
        cfg: The value of the config, with everything it inherits.
        inherited: The merged value of the bases.
    """

    path: Path
    text: str
    bases: List[Path]
    names: Set[str]
    dead: Set[str]
    cfg: ConfigDict
    inherited: ConfigDict


def read_file(path: Path) -> ConfigFile:
    """Read a config; the file and its bases are executed.

    Raises:
        GuardConfigError: If the file is no config, or cannot be read.
    """
    if path.suffix != '.py':
        raise GuardConfigError(f'{path} is no Python file (.py).')
    # newline='' keeps the file's line ends, which a translation would lose.
    try:
        with path.open(encoding='utf-8', newline='') as file:
            text = file.read()
    except (OSError, UnicodeError) as error:
        raise GuardConfigError(f'{path} cannot be read: {error}.') from error
    source = Source(text, str(path))
    names = {*source.assigned, *source.tangled}
    cfg = load(path)
    dead = set()
    for key in names & {*TARGETS}:
        if find_rival(source, key) and not needs_hooks(cfg, key):
            dead.add(key)
            # A variable of a config of 2.x may have the name of a key of 1.x.
            if source.is_read(key):
                names.remove(key)
    bases = direct_bases(path)
    return ConfigFile(path, text, bases, names, dead, cfg, load_bases(path))


def needs_hooks(cfg: ConfigDict, key: str) -> bool:
    """Whether a key waits for a config above that has ``default_hooks``."""
    if key != 'evaluation' or not isinstance(cfg.get(key), dict):
        return False
    # Only the option save_best goes to the hooks.
    return 'save_best' in cfg[key] and 'default_hooks' not in cfg


def find_rival(source: Source, key: str) -> Optional[str]:
    """Return the key of 2.x in a file that overrides a key of 1.x.

    MMEngine reads only the key of 2.x if a file has both.
    """
    for target in TARGETS[key]:
        # default_hooks is no rival: the file's entries stay, and the entries
        # for the migrated hooks are added beside them.
        if target in source.assigned and target != 'default_hooks':
            return target
    return None
