"""What a config inherits."""

import ast
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, Iterator, List

from mmnanguard.core import GuardConfigError
from mmnanguard.read_config import read_config

from .migration import TARGETS

__all__ = ['load', 'load_bases', 'old_bases', 'same_targets']


def load(path: Any) -> Dict[str, Any]:
    """A config's value, with what it inherits, as builtins.

    Modules that it would import (custom_imports) are not: those of a 1.x
    project could not be.

    Raises:
        GuardConfigError: If MMEngine cannot read it.
    """
    try:
        cfg = read_config(path, import_custom_modules=False)
    except GuardConfigError:
        raise
    except Exception as error:
        raise GuardConfigError(
            f'MMEngine cannot read {path}: {type(error).__name__}: {error}'
        ) from error
    return cfg.to_dict()


def base_names(path: Path) -> List[str]:
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and '_base_' in [
            getattr(target, 'id', None) for target in node.targets
        ]:
            try:
                names = ast.literal_eval(node.value)
            except ValueError as error:
                raise GuardConfigError(
                    f'{path}: _base_ is computed; write its files as strings.'
                ) from error
            return [names] if isinstance(names, str) else list(names)
    return []


def load_bases(path: Path) -> Dict[str, Any]:
    """The value of all bases together."""
    made: Dict[str, Any] = {}
    for name in base_names(path):
        made.update(load(name if '::' in name else path.parent / name))
    return made


def files_below(path: Path) -> Iterator[Path]:
    for name in base_names(path):
        base = path.parent / name
        if base.suffix == '.py' and '::' not in name:  # not a package's
            yield base
            yield from files_below(base)


def old_keys(path: Path) -> List[str]:
    """Keys of 1.x that a file itself sets."""
    return [
        target.id
        for node in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in TARGETS
    ]


def old_bases(path: Path) -> Dict[str, List[str]]:
    """Keys of 1.x that files below this one set."""
    found = {
        os.path.relpath(base, path.parent): old_keys(base)
        for base in files_below(path)
    }
    return {name: keys for name, keys in found.items() if keys}


def same_targets(path: Path) -> Dict[str, List[str]]:
    """Keys of 2.x that several bases beside one another would then set."""
    owners = defaultdict(list)
    for name in base_names(path):
        base = path.parent / name
        if base.suffix == '.py' and '::' not in name:
            keys = {
                key
                for each in (base, *files_below(base))
                for key in old_keys(each)
            }
            for target in {new for key in keys for new in TARGETS[key]}:
                owners[target].append(base.name)
    return {key: names for key, names in owners.items() if len(names) > 1}
