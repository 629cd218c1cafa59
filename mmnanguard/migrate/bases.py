"""The bases that a config inherits from."""

import ast
import os
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Set

from mmnanguard.core import GuardConfigError
from mmnanguard.read_config import read_config

from .config_value import ConfigDict, ConfigValue
from .migration import TARGETS
from .model_keys import move_to_model

__all__ = ['load', 'load_bases', 'old_bases', 'same_targets']


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
        # A config is a program: it may raise any exception.
        raise GuardConfigError(
            f'MMEngine cannot read {path}: {type(error).__name__}: {error}'
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


def direct_bases(path: Path) -> Iterator[Path]:
    """Yield the Python files that a file names as bases.

    Bases in a package (``mmpretrain::...``) are not the user's to migrate.
    """
    for name in base_names(path):
        base = path.parent / name
        if base.suffix == '.py' and '::' not in name:
            yield base


def files_below(path: Path) -> Iterator[Path]:
    """Yield all files that a file inherits from, directly or not."""
    for base in direct_bases(path):
        yield base
        yield from files_below(base)


def old_keys(path: Path) -> List[str]:
    """Return the keys of 1.x that a file itself sets."""
    keys: List[str] = []
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign):
            keys += filter(TARGETS.__contains__, assigned_names(node))
    return keys


def old_bases(path: Path) -> Dict[str, List[str]]:
    """Return the keys of 1.x by base file, for files that have any."""
    # The keys are stored by file, so that a base that two bases share is
    # reported once.
    keys_by_base = {}
    for base in files_below(path):
        keys = old_keys(base)
        if keys:
            keys_by_base[os.path.relpath(base, path.parent)] = keys
    return keys_by_base


def same_targets(path: Path) -> Dict[str, List[str]]:
    """Return the keys of 2.x that several sibling bases would set.

    MMEngine refuses sibling bases that set the same key. Two keys of 1.x
    such as ``optimizer`` and ``fp16`` become the same key of 2.x.
    """
    owners = defaultdict(list)
    for base in direct_bases(path):
        # A set counts a base once: 'optimizer' and 'fp16' in a single base are
        # no conflict.
        targets: Set[str] = set()
        for file in (base, *files_below(base)):
            for key in old_keys(file):
                targets.update(TARGETS[key])
        for target in targets:
            owners[target].append(base.name)
    return {key: names for key, names in owners.items() if len(names) > 1}
