"""The migration of the files of a tree, each after its bases."""

from dataclasses import dataclass
from pathlib import Path
from typing import (
    Collection,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from mmnanguard.core import GuardConfigError

from .completion import lacks
from .config_value import ConfigDict, ConfigValue
from .migration import TARGETS, Migration
from .notes import Notes
from .place import ORDER
from .policy import Loop
from .rewrite import OWNERS, Job, Overlay, belongs_above, rewrite
from .tree import Copy, Tree

__all__ = ['Migrated', 'Run']


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
                    withheld = self.withheld.setdefault(path, set())
                    # What the file has set before stays there.
                    is_own = key in self.tree.files[path].names
                    if not is_own and key not in withheld:
                        withheld.add(key)
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
            readers=tree.readers(path),
            waiting=self.waiting(path),
            set_below={key for key in ORDER if tree.is_set_in(key, path)},
            bases=bases,
        )

    def waiting(self, path: Path) -> Set[str]:
        """Return the keys of 1.x that the bases of a file leave to it."""
        keys: Set[str] = set()
        for base in self.tree.below(path)[1:]:
            names = self.tree.files[base].names & {*TARGETS}
            keys |= names - {*self.old[base]}
        return keys

    def migrated(self, path: Path) -> Migrated:
        """Return the result for a file whose bases have theirs."""
        job = self.job(path)
        old = job.file.text
        self.old[path] = old_keys(job)
        if 'read_base' in old:
            # Its bases are modules of a package, which a copy is not.
            self.values[path] = dict(job.file.cfg)
            m = rewrite(job, {})
            return Migrated(old, m.source.code(), m.notes)
        # A base that is migrated later stays as it is until then.
        if self.is_alone not in (None, path) and not job.alive:
            self.values[path] = self.copy.load(path)
            return Migrated(old, old, Notes())
        m, value = self.attempt(job, {})
        more, notes = lacks(job, m, value)
        if more:
            m, value = self.attempt(job, more)
            rest, _ = lacks(job, m, value)
            if rest:
                # Source that was moved means something else at its new place.
                m, value = self.attempt(job, more, [True])
                rest, _ = lacks(job, m, value)
            self.tell(job, m, more, notes)
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
        notes: Notes,
    ) -> None:
        """Add notes on what a file needs beside what it says itself."""
        names = [key for key in more if key != 'default_hooks']
        if names:
            m.done((), f'{", ".join(names)}: completed for this config')
        known = {text for _, text in (*m.notes.changed, *m.notes.left)}
        for path in self.tree.below(job.file.path)[1:]:
            base = self.made[path].notes
            known |= {text for _, text in (*base.changed, *base.left)}
        for mine, theirs in (
            (m.notes.changed, notes.changed),
            (m.notes.left, notes.left),
        ):
            mine += [note for note in theirs if note[1] not in known]

    def attempt(
        self,
        job: Job,
        more: Mapping[str, ConfigValue],
        forms: Sequence[bool] = (False, True),
    ) -> Tuple[Migration, ConfigDict]:
        """Return the migration of a file, and the value of the new file.

        Args:
            job: The file.
            more: Values to write beside those that the file says itself.
            forms: Whether values are written in place of their source; the
                first form that can be read is taken.
        """
        error: Optional[GuardConfigError] = None
        for is_plain in forms:
            m = rewrite(job, more, is_plain)
            self.copy.write(job.file.path, m.source.code())
            try:
                return m, self.copy.load(job.file.path)
            except GuardConfigError as reason:
                error = reason
        assert error is not None
        m.left((), f'the new file cannot be read: {error.__cause__}')
        return m, dict(job.file.cfg)


def old_keys(job: Job) -> List[str]:
    """Return the keys of 1.x that a file sets and does not keep for others."""
    keys = []
    for key in TARGETS:
        is_kept = key not in job.file.dead and belongs_above(job, key)
        if key in job.file.names and not is_kept:
            keys.append(key)
    return keys


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
