"""Migration of configs of 1.x, or unguarded configs, to guarded ones."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Dict, List, Mapping, Optional, Set, Tuple

from mmnanguard.core import GuardConfigError

from .bases import load
from .config_value import ConfigDict, ConfigValue
from .differences import difference, is_writable, missing, opened, plain
from .guarded_types import is_guarded_type, short
from .migration import TARGETS, Migration
from .notes import Notes
from .place import ORDER
from .policy import Loop
from .render import render
from .rewrite import OWNERS, Job, Overlay, belongs_above, merged_form, rewrite
from .tree import Copy, Tree, configs_in

__all__ = ['Migrated', 'Migrations', 'flatten', 'migrate', 'migrate_tree']

# A phase that a config does without has None for these keys.
PHASES = (
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_cfg',
    'test_cfg',
)


# Entries of a wrapper that mean the same as no entry; they reset what a base
# has.
# What MMEngine's CheckpointHook counts unless it is told.
EPOCHS = dict(by_epoch=True)
UNSET = dict(
    accumulative_counts=1, constructor='DefaultOptimWrapperConstructor'
)


@dataclass(frozen=True)
class Migrated:
    """The result of a migration.

    Attributes:
        old: The text of the file.
        new: The text that it becomes; equal to ``old`` if nothing changes.
        notes: The notes for the user.
    """

    old: str
    new: str
    notes: Notes


@dataclass(frozen=True)
class Migrations:
    """The results for a tree of configs.

    Attributes:
        root: The folder that holds all files.
        files: The result for each file, each after its bases, by absolute
            path.
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
        files = {path: run.made[path] for path in tree.files}
        return Migrations(tree.root, files, tree.refused)


class Run:
    """The migration of a tree.

    Args:
        tree: The files.
        copy: A copy of the tree, which takes the new files.
        overlay: The function that returns a guard's overlay by its name.
        guard: The name of the guard.
        is_alone: The only file to migrate; None for all.
        shared: Bases that keep what files outside of the tree need.

    Attributes:
        made: The results so far.
        values: The values of the new files.
        withheld: The keys of 2.x that a file leaves to another.
        old: The keys of 1.x that a file has and should not keep.
    """

    def __init__(
        self,
        tree: Tree,
        copy: Copy,
        overlay: Overlay,
        guard: Optional[str],
        is_alone: Optional[Path] = None,
        shared: Collection[Path] = (),
    ) -> None:
        self.tree, self.copy = tree, copy
        self.overlay, self.guard = overlay, guard
        self.is_alone, self.shared = is_alone, shared
        self.made: Dict[Path, Migrated] = {}
        self.values: Dict[Path, ConfigDict] = {}
        self.withheld: Dict[Path, Set[str]] = {}
        self.old: Dict[Path, List[str]] = {}

    def result(self, path: Path) -> Migrated:
        """Return the result for a file, after those for its bases."""
        if path in self.made:
            return self.made[path]
        bases = self.tree.files[path].bases
        while True:
            for base in bases:
                self.result(base)
            if not self.withhold(bases):
                break
        self.made[path] = self.migrated(path)
        return self.made[path]

    def withhold(self, bases: List[Path]) -> bool:
        """Take a key from all but one of the bases that set it.

        MMEngine refuses bases beside one another that set the same key.

        Returns:
            Whether a base lost a key, so that some results are void.
        """
        # Bases that are migrated one by one do not know of one another.
        if self.is_alone:
            return False
        void: Set[Path] = set()
        for key in ORDER:
            rivals = [base for base in bases if key in self.values[base]]
            for loser in rivals_without_owner(self.tree, key, rivals):
                for path in self.tree.below(loser):
                    # What the file has set before stays there.
                    if key not in self.tree.files[path].own:
                        self.withheld.setdefault(path, set()).add(key)
                        void |= {path} | self.tree.above(path)
        for path in void:
            self.made.pop(path, None)
        return any(path in void for path in bases)

    def job(self, path: Path) -> Job:
        """Return what the migration of a file has to know."""
        tree, file = self.tree, self.tree.files[path]
        is_base = bool(tree.users.get(path))
        loop = tree.loop(path)
        if loop is None and not self.is_alone and path not in self.shared:
            unit = tree.unit_of_users(path)
            if unit is not None:
                loop = Loop(unit, None)
        bases: ConfigDict = {}
        for base in file.bases:
            bases.update(self.values[base])
        return Job(
            file,
            self.overlay,
            self.guard,
            tree.alive(path),
            loop or Loop(True, None, is_known=False),
            tree.base_loop(path),
            self.withheld.get(path, set()),
            gives_away=is_base
            and not self.is_alone
            and path not in self.shared,
            is_alone=self.is_alone is not None,
            bases=bases,
        )

    def migrated(self, path: Path) -> Migrated:
        """Return the result for a file whose bases have theirs."""
        job = self.job(path)
        old = job.file.text
        self.old[path] = old_keys(job)
        # A base that is migrated later stays as it is until then.
        if self.is_alone not in (None, path) and not job.alive:
            self.values[path] = self.copy.load(path)
            return Migrated(old, old, Notes())
        m, value = self.attempt(job, {})
        more, told = self.lacks(job, m, value)
        if more:
            m, value = self.attempt(job, more)
            self.tell(job, m, more, told)
            rest, _ = self.lacks(job, m, value)
            if rest:
                names = ', '.join(rest)
                m.left((), f'{names}: write by hand what 1.x had here')
        self.values[path] = value
        return Migrated(old, m.source.code(), m.notes)

    def tell(
        self,
        job: Job,
        m: Migration,
        more: Mapping[str, ConfigValue],
        told: Notes,
    ) -> None:
        """Add notes on what a file needs beside what it says itself."""
        names = [key for key in more if key != 'default_hooks']
        if names:
            m.done((), f'{", ".join(names)}: completed for this config')
        known = {text for _, text in (*m.notes.changed, *m.notes.left)}
        for path in self.tree.below(job.file.path)[1:]:
            notes = self.made[path].notes
            known |= {text for _, text in (*notes.changed, *notes.left)}
        for mine, theirs in (
            (m.notes.changed, told.changed),
            (m.notes.left, told.left),
        ):
            mine += [note for note in theirs if note[1] not in known]

    def attempt(
        self, job: Job, more: Mapping[str, ConfigValue]
    ) -> Tuple[Migration, ConfigDict]:
        """Return the migration of a file, and the value of the new file."""
        error: Optional[GuardConfigError] = None
        for is_plain in (False, True):
            m = rewrite(job, more, is_plain)
            self.copy.write(job.file.path, m.source.code())
            try:
                return m, self.copy.load(job.file.path)
            except GuardConfigError as reason:
                error = reason
        assert error is not None
        m.left((), f'the new file cannot be read: {error.__cause__}')
        return m, dict(job.file.cfg)

    def lacks(
        self, job: Job, m: Migration, value: ConfigDict
    ) -> Tuple[ConfigDict, Notes]:
        """Return what a new file lacks of its value, and the notes on it."""
        whole = merged_form(job, job.alive)
        wanted = everything(whole)
        more: ConfigDict = {}
        for key in ORDER:
            if key in m.kept_back or key == 'custom_hooks':
                continue
            if self.tree.is_set_in(key, job.file.path):
                continue
            if key in wanted:
                found = compared(key, value, wanted[key])
                if found is not None:
                    (more[key],) = found
            elif key in PHASES and value.get(key) and 'data' in whole.old:
                more[key] = None
        # Keys of 1.x that a base keeps for this file.
        waiting = (job.alive & {*value}) - job.file.own
        for key, want in everything(merged_form(job, waiting)).items():
            if key not in more and key not in m.kept_back:
                more.update(missing(value, {key: want}))
        add_units(job, value, more)
        if trains(job, value):
            hooks = missing(
                value.get('default_hooks') or {}, m.guard['default_hooks']
            )
            if hooks:
                more['default_hooks'] = {
                    **more.get('default_hooks', {}),
                    **hooks,
                }
        for key in list(more):
            if not is_writable(plain(more[key])):
                del more[key]
        return more, whole.notes


def old_keys(job: Job) -> List[str]:
    """Return the keys of 1.x that a file sets and does not keep for others."""
    keys = []
    for key in TARGETS:
        is_kept = key not in job.file.dead and belongs_above(job, key)
        if key in job.file.own and not is_kept:
            keys.append(key)
    return keys


def everything(m: Migration) -> ConfigDict:
    """Return the keys of 2.x that a migration makes."""
    made = dict(m.new)
    if m.hooks:
        made['default_hooks'] = m.hooks
    return made


def trains(job: Job, value: Mapping[str, ConfigValue]) -> bool:
    """Whether one trains with a config, under a guard."""
    wrapper = value.get('optim_wrapper') or {}
    return (
        'default_hooks' not in job.withheld
        and 'model' in value
        and bool(job.file.bases)
        and is_guarded_type(short(wrapper.get('type')))
    )


def add_units(
    job: Job, value: Mapping[str, ConfigValue], more: ConfigDict
) -> None:
    """Add the unit of a loop of iterations, where a base knows no loop.

    MMEngine takes epochs for what does not say its unit.
    """
    if not job.loop.is_known or job.loop.by_epoch:
        return
    hooks = value.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint')
    if is_without_unit(checkpoint) and 'default_hooks' not in job.file.own:
        made = more.setdefault('default_hooks', {})
        made.setdefault('checkpoint', {}).setdefault('by_epoch', False)
    processor = value.get('log_processor')
    if is_without_unit(processor) and 'log_processor' not in job.file.own:
        more.setdefault('log_processor', {}).setdefault('by_epoch', False)


def is_without_unit(config: ConfigValue) -> bool:
    """Whether a config of a hook does not say what it counts."""
    return isinstance(config, dict) and 'by_epoch' not in config


def compared(
    key: str, value: Mapping[str, ConfigValue], want: ConfigValue
) -> Optional[Tuple[ConfigValue]]:
    """Return what the value of a key lacks; None if it lacks nothing."""
    if key not in value:
        return (want,)
    have = value[key]
    want = opened(want)
    if key == 'optim_wrapper' and isinstance(have, dict):
        # The limits of removed hooks are known to the file alone.
        want = {k: v for k, v in want.items() if k != 'guard'}
        have = {
            k: v for k, v in have.items() if k in want or not is_unset(k, v)
        }
    if key == 'default_hooks':
        # Other hooks may be there as well.
        have = {k: v for k, v in have.items() if k in want}
        if is_without_unit(want.get('checkpoint')) and have.get('checkpoint'):
            want = {**want, 'checkpoint': {**want['checkpoint'], **EPOCHS}}
            have = {**have, 'checkpoint': {**EPOCHS, **have['checkpoint']}}
    return difference(have, want)


def is_unset(key: str, value: ConfigValue) -> bool:
    """Whether an entry of a wrapper is as good as none."""
    return key == 'guard' or value in (None, UNSET.get(key))


def rivals_without_owner(
    tree: Tree, key: str, rivals: List[Path]
) -> List[Path]:
    """Return the bases that must not set a key, of several that do."""
    if len(rivals) < 2:
        return []

    def rank(base: Path) -> Tuple[bool, bool]:
        owners = OWNERS.get(key, ())
        return (
            tree.is_set_in(key, base),
            bool({*owners} & {*tree.files[base].cfg}),
        )

    owner = max(rivals, key=rank)
    return [base for base in rivals if base != owner]
