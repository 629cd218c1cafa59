"""The configs of a project: which there are, and their migration."""

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from mmengine.config import Config

from public_configs.compare import (
    Difference,
    Notes,
    compare,
    names,
    stray_keys,
)
from public_configs.guards import compare_guarded
from public_configs.run_1x import describe_1x
from public_configs.run_2x import describe_2x
from public_configs.stubs import stubbed_packages
from tools.migrate_config import main as migrate_config

# A config with one of these keys is of 2.x.
NEW_KEYS = frozenset(
    """
    optim_wrapper param_scheduler default_hooks
    train_dataloader val_dataloader test_dataloader
    """.split()  # noqa: SIM905
)
HEADINGS = {
    'done:': 'done',
    'changed in meaning:': 'changed',
    'cannot do, left to you:': 'left',
}


@dataclass
class Outcome:
    """The migration of a config of 1.x or 2.x.

    Attributes:
        kind: 'migrated', 'refused' or 'crashed'.
        text: The console output.
        notes: The notes of the migration.
        error: Why the result cannot be read; None if it can be, or if there
            is none.
        differences: The facts that changed.
    """

    kind: str
    text: str
    notes: Notes = field(default_factory=lambda: Notes([], [], []))
    error: Optional[str] = None
    differences: List[Difference] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        """Whether there is a result, and MMEngine can read it."""
        return self.kind == 'migrated' and self.error is None

    @property
    def silent(self) -> List[Difference]:
        """The differences that no note tells of."""
        return [d for d in self.differences if not d.is_told]


def read(path: Path) -> Dict[str, Any]:
    """Return a config, inherited keys included, as builtins."""
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    values: Dict[str, Any] = cfg.to_dict()
    return values


def leaves(project: Path) -> Iterator[Path]:
    """Yield the configs of a project that are not only parts of others."""
    for path in sorted(project.rglob('*.py')):
        if '_base_' not in path.relative_to(project).parts:
            yield path


def is_new(cfg: Mapping[str, Any]) -> bool:
    """Whether a config is of 2.x."""
    return bool(NEW_KEYS & {*cfg})


def migrate_leaf(leaf: Path, out: Path, *options: str) -> Outcome:
    """Migrate a config with its bases, read the result, and compare."""
    old = read(leaf)
    with stubbed_packages():
        outcome = run_tool(leaf, out, *options)
    if outcome.kind == 'migrated':
        try:
            new = read_result(leaf, out)
        except Exception as error:
            # A config is a program: it may raise any exception.
            outcome.error = f'{type(error).__name__}: {error}'
        else:
            outcome.differences = judge(old, new, outcome.notes)
    return outcome


def judge(
    old: Mapping[str, Any], new: Mapping[str, Any], notes: Notes
) -> List[Difference]:
    """Return the differences between a config and its migration."""
    if is_new(old):
        texts = notes.done + notes.changed + notes.left
        differences = []
        for problem in compare_guarded(old, new, '\n'.join(texts)):
            # A key of 1.x in a config of 2.x may change what stands there.
            key, _, verb = problem.partition(' ')
            is_told = verb == 'is changed' and names(texts, rf'\b{key}\b')
            differences.append(Difference(problem, None, None, is_told))
        return differences
    facts = describe_1x(old)
    differences = compare(facts, describe_2x(new, old), notes)
    stray = stray_keys(new)
    for where in sorted(set(stray) - set(stray_keys(old))):
        differences.append(Difference('_delete_', None, where, False))
    return differences


def run_tool(leaf: Path, out: Path, *options: str) -> Outcome:
    """Run ``tools/migrate_config.py`` in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(
            stderr
        ):
            status = migrate_config([str(leaf), '--out', str(out), *options])
    except SystemExit as error:
        status = int(error.code or 0)
    except Exception as error:
        return Outcome('crashed', f'{type(error).__name__}: {error}')
    text = stdout.getvalue() + stderr.getvalue()
    if status > 2:
        # The tool prints the traceback itself.
        return Outcome('crashed', text[-500:])
    if status == 2:
        return Outcome('refused', text)
    return Outcome('migrated', text, parse_notes(text))


def parse_notes(text: str) -> Notes:
    """Return the notes that the tool printed."""
    notes: Dict[str, List[str]] = dict(done=[], changed=[], left=[])
    section: Optional[str] = None
    for line in text.splitlines():
        if line.strip() in HEADINGS:
            section = HEADINGS[line.strip()]
        elif section and re.match(r'\s*- ', line):
            notes[section].append(line)
        elif not line.strip():
            section = None
    return Notes(**notes)


def read_result(leaf: Path, out: Path) -> Dict[str, Any]:
    """Return the migrated form of a config, as if it stood at its place.

    A config may contain its own folder ({{ fileDirname }}).
    """
    path = result_of(leaf, out)
    folder = leaf.parents[len(path.relative_to(out).parts) - 1]
    values: Dict[str, Any] = moved(read(path), str(out), str(folder))
    return values


def moved(value: Any, old: str, new: str) -> Any:
    """Return a value with another folder in its strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: moved(entry, old, new) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(entry, old, new) for entry in value)
    return value


def result_of(leaf: Path, out: Path) -> Path:
    """Return the migrated form of a config below a folder."""
    parts = leaf.parts
    for begin in range(len(parts)):
        path = out.joinpath(*parts[begin:]) if begin else out
        if path.is_file():
            return path
    raise FileNotFoundError(f'no {leaf.name} below {out}')


def quiet() -> None:
    """Silence the libraries."""
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)


def count(outcomes: List[Outcome], num_unreadable: int) -> Dict[str, int]:
    """Return the numbers of a row of the table."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    loaded = [outcome for outcome in outcomes if outcome.loads]
    silent = [outcome for outcome in loaded if outcome.silent]
    same = [outcome for outcome in loaded if not outcome.differences]
    return dict(
        unreadable=num_unreadable,
        leaves=len(outcomes),
        migrated=kinds['migrated'],
        refused=kinds['refused'],
        crashed=kinds['crashed'],
        load=len(loaded),
        agree=len(same),
        told=len(loaded) - len(same) - len(silent),
        silent=len(silent),
    )
