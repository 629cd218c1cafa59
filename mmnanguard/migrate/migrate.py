"""Migration of configs of 1.x, or unguarded configs, to guarded ones."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, Optional

from mmnanguard.core import GuardConfigError

from .bases import load
from .differences import is_writable
from .notes import Notes
from .render import render
from .rewrite import Overlay
from .run import Migrated, Run
from .tree import Copy, Tree, configs_in

__all__ = ['Migrated', 'Migrations', 'flatten', 'migrate', 'migrate_tree']


@dataclass(frozen=True)
class Migrations:
    """The results for a tree of configs.

    Attributes:
        root: The folder that holds all files.
        files: The result for each file, each after its bases, by absolute
            path; files that configs only read, such as those that
            ``read_base`` imports, stay as they are.
        refused: The reasons why other files cannot be read, by absolute path.
    """

    root: Path
    files: Dict[Path, Migrated]
    refused: Dict[Path, GuardConfigError]


def migrate(
    path: Path, overlay: Overlay, guard: Optional[str] = None
) -> Migrated:
    """Return the guarded form of one config; the file itself is not changed.

    The file and its bases are executed, as MMEngine executes any config. Its
    bases, as far as they are of 1.x, are taken to be migrated one by one too,
    before or after it.

    Args:
        path: A Python config.
        overlay: The function that returns a guard's overlay by the guard's
            name.
        guard: The name of the guard; None selects the guard for the
            config's precision.

    Raises:
        GuardConfigError: If the file is no config, or cannot be read.
    """
    tree = Tree([path])
    path = Path(os.path.abspath(path))
    if path in tree.refused:
        raise tree.refused[path]
    with Copy(tree) as copy:
        run = Run(tree, copy, overlay, guard, is_alone=path)
        migrated = run.result(path)
        for base in tree.below(path)[1:]:
            old = run.old.get(base, [])
            if old:
                name = os.path.relpath(base, path.parent)
                migrated.notes.left.append(
                    (
                        None,
                        f'{name} is of 1.x as well ({", ".join(old)}): '
                        'migrate it',
                    )
                )
        return migrated


def flatten(
    path: Path, overlay: Overlay, guard: Optional[str] = None
) -> Migrated:
    """Return the guarded form of a config and its bases in one file.

    Args:
        path: A Python config.
        overlay: The function that returns a guard's overlay by the guard's
            name.
        guard: The name of the guard; None selects the guard for the
            config's precision.

    Raises:
        GuardConfigError: If the file is no config, or cannot be read.
    """
    text = ''
    for name, value in load(path).items():
        # Objects that are no builtins have no source.
        if is_writable(value):
            text += f'{name} = {render(value, lambda kept: None)}\n'
    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder) / path.name
        flat.write_text(text, encoding='utf-8')
        return migrate(flat, overlay, guard)


def migrate_tree(
    paths: Collection[Path],
    overlay: Overlay,
    guard: Optional[str] = None,
    is_moved: bool = False,
) -> Migrations:
    """Return the guarded forms of configs and of all their bases.

    All files are read before any is changed, and none is changed here. A base
    keeps a key of 1.x that only the configs above it can migrate if some of
    them are not among these.

    Args:
        paths: Python configs, and folders of them.
        overlay: The function that returns a guard's overlay by the guard's
            name.
        guard: The name of the guard; None selects the guard for the
            precision of each config.
        is_moved: Whether the new files go to another folder, so that other
            configs still find the old ones.
    """
    tree = Tree(configs_in(paths))
    if not tree.files:
        return Migrations(Path(), {}, tree.refused)
    shared = set() if is_moved else tree.shared()
    with Copy(tree) as copy:
        run = Run(tree, copy, overlay, guard, shared=shared)
        waiting = list(tree.files)
        while waiting:
            for path in waiting:
                run.result(path)
            waiting = [path for path in tree.files if path not in run.made]
        files = {}
        for path, text in tree.unmigrated.items():
            files[path] = Migrated(text, text, Notes())
        for path in tree.files:
            files[path] = run.made[path]
        return Migrations(tree.root, files, tree.refused)
