"""A tree of configs: the files that configs inherit from, and themselves."""

import ast
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Set

from mmnanguard.core import GuardConfigError

from .bases import (
    ConfigFile,
    assigned_names,
    direct_bases,
    load,
    read_file,
    unmigrated_bases,
)
from .config_value import ConfigDict, ConfigValue
from .migration import LENGTHS, TARGETS, loop_of
from .policy import Loop

__all__ = ['Copy', 'Tree']


# The keys of train_cfg that tell one loop from another.
LOOP_KEYS = ('type', 'by_epoch', 'max_epochs', 'max_iters')
# A key of a base that a config reads, as in {{_base_.data.train}}.
BASE_KEY = re.compile(r'\b_base_\.(\w+)')


class Tree:
    """The files of some configs, all read before any is changed.

    Args:
        paths: The configs.

    Attributes:
        files: The files that can be read, each after its bases, by path.
        refused: The reasons why the others cannot be read, by path.
        unmigrated: The texts of the files that configs read and that are not
            migrated, by path.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        self.files: Dict[Path, ConfigFile] = {}
        self.refused: Dict[Path, GuardConfigError] = {}
        self.unmigrated: Dict[Path, str] = {}
        self.users: Dict[Path, Set[Path]] = {}
        for path in paths:
            self._read(Path(os.path.abspath(path)))
        for path in self.files:
            self._read_unmigrated(path)

    def _read(self, path: Path) -> None:
        if path in self.files or path in self.refused:
            return
        try:
            file = read_file(path)
        except GuardConfigError as error:
            self.refused[path] = error
            return
        for base in file.bases:
            self._read(base)
            self.users.setdefault(base, set()).add(path)
        self.files[path] = file

    def _read_unmigrated(self, path: Path) -> None:
        for base in unmigrated_bases(path):
            if base in self.files or base in self.unmigrated:
                continue
            with base.open(encoding='utf-8', newline='') as file:
                self.unmigrated[base] = file.read()
            if base.suffix == '.py':
                self._read_unmigrated(base)

    def below(self, path: Path) -> List[Path]:
        """Return a file and all files that it inherits from."""
        files = [path]
        for base in self.files[path].bases:
            files += self.below(base)
        return files

    def above(self, path: Path) -> Set[Path]:
        """Return all files that inherit from a file."""
        files = set(self.users.get(path, ()))
        for user in self.users.get(path, ()):
            files |= self.above(user)
        return files

    def alive(self, path: Path) -> Set[str]:
        """Return the keys of 1.x that have an effect in a config."""
        file = self.files[path]
        keys = file.names & {*TARGETS}
        for base in file.bases:
            keys |= self.alive(base)
        return (keys - file.dead) & {*file.cfg}

    def loop(self, path: Path) -> Optional[Loop]:
        """Return the training loop of a config; None if it has none."""
        file = self.files[path]
        if file.names & {*LENGTHS} - file.dead:
            return loop_of(file.cfg)
        # None says that a config does not train; an interval alone is of the
        # loop that another file has.
        train = file.cfg.get('train_cfg') or {}
        if 'train_cfg' in file.names and {*train} & {*LOOP_KEYS}:
            return loop_of(dict(train_cfg=train))
        return self.base_loop(path)

    def base_loop(self, path: Path) -> Optional[Loop]:
        """Return the training loop of a config's bases."""
        file = self.files[path]
        for base in file.bases:
            loop = self.loop(base)
            if loop is not None:
                return loop
        # A base that is no Python file, or is in a package.
        if any(file.inherited.get(key) for key in (*LENGTHS, 'train_cfg')):
            return loop_of(file.inherited)
        return None

    def readers(self, path: Path) -> Dict[str, str]:
        """Return the names of files that read a key of a base, by key."""
        readers = {}
        for user in sorted(self.above(path)):
            for key in BASE_KEY.findall(self.files[user].text):
                readers[key] = user.name
        return readers

    def unit_of_users(self, path: Path) -> Optional[bool]:
        """Whether the configs above a file count epochs; None if unknown."""
        units = set()
        for user in self.above(path):
            loop = self.loop(user)
            if loop is not None:
                units.add(loop.by_epoch)
        if len(units) == 1:
            return units.pop()
        return None

    def is_set_in(self, key: str, path: Path) -> bool:
        """Whether a config, or a file below it, sets a key itself."""
        return any(key in self.files[file].names for file in self.below(path))

    def shared(self) -> Set[Path]:
        """Return the files from which configs outside of the tree inherit.

        They are looked for in the folder of the tree.
        """
        shared: Set[Path] = set()
        for path in sorted(self.root.rglob('*.py')):
            if path in self.files or path in self.refused:
                continue
            try:
                bases = direct_bases(path)
            except (GuardConfigError, SyntaxError, ValueError):
                continue
            for base in bases:
                if base in self.files:
                    shared |= {*self.below(base)}
        return shared

    @property
    def root(self) -> Path:
        """The folder that holds all files."""
        paths = [*self.files, *self.unmigrated]
        folders = [str(path.parent) for path in paths]
        return Path(os.path.commonpath(folders))


def configs_in(paths: Collection[Path]) -> List[Path]:
    """Return the configs among some files, and those in folders."""
    configs = []
    for path in paths:
        if not path.is_dir():
            configs.append(path)
            continue
        for file in sorted(path.rglob('*.py')):
            # Other files, such as scripts, would be executed.
            if looks_like_config(file):
                configs.append(file)
    return configs


def looks_like_config(path: Path) -> bool:
    """Whether a file sets a key of a config."""
    try:
        body = ast.parse(path.read_text(encoding='utf-8')).body
    except (SyntaxError, ValueError):
        return False
    names = set()
    for node in body:
        if isinstance(node, ast.Assign):
            names |= {*assigned_names(node)}
    return bool(names & {'_base_', 'model', 'optim_wrapper', *TARGETS})


class Copy:
    """A copy of a tree in a folder of its own, to read what is written.

    Args:
        tree: The tree.
    """

    def __init__(self, tree: Tree) -> None:
        self.root = tree.root
        self.folder = tempfile.TemporaryDirectory()
        for path, text in tree.unmigrated.items():
            self.write(path, text)
        for path, file in tree.files.items():
            self.write(path, file.text)

    def __enter__(self) -> 'Copy':
        return self

    def __exit__(self, *error: Any) -> None:
        self.folder.cleanup()

    def at(self, path: Path) -> Path:
        """Return where the copy of a file is."""
        return Path(self.folder.name) / os.path.relpath(path, self.root)

    def write(self, path: Path, text: str) -> None:
        """Write the copy of a file."""
        copy = self.at(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open('w', encoding='utf-8', newline='') as file:
            file.write(text)

    def load(self, path: Path) -> ConfigDict:
        """Return the value of the copy, as if it stood at its place.

        Raises:
            GuardConfigError: If MMEngine cannot read it.
        """
        values: ConfigDict = self._moved(load(self.at(path)))
        return values

    def _moved(self, value: ConfigValue) -> ConfigValue:
        if isinstance(value, str):
            return value.replace(self.folder.name, str(self.root))
        if isinstance(value, dict):
            return {key: self._moved(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._moved, value))
        return value
