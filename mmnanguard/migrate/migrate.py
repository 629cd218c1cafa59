"""Migration of a config of 1.x, or an unguarded config, to a guarded one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Mapping, Optional

from mmnanguard.core import GuardConfigError

from .bases import load, load_bases, old_bases, same_targets
from .config_value import ConfigValue
from .custom_hooks import migrate_custom_hooks
from .environment import migrate_environment
from .guarded_types import is_half
from .hooks import migrate_hooks
from .loops import migrate_data, migrate_loops, migrate_resume
from .migration import TARGETS, Migration
from .model_config import migrate_model
from .notes import Notes
from .place import place
from .schedules import migrate_schedules
from .source import Source
from .wrapper import migrate_wrapper

__all__ = ['Migrated', 'migrate']


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


def migrate(
    path: Path,
    overlay: Callable[[str], Mapping[str, ConfigValue]],
    guard: Optional[str] = None,
) -> Migrated:
    """Return the guarded form of a config; the file itself is not changed.

    The file and its bases are executed, as MMEngine executes any config.

    Args:
        path: A Python config.
        overlay: The function that returns a guard's overlay by the guard's
            name.
        guard: The name of the guard; None selects the guard for the
            config's precision.

    Raises:
        GuardConfigError: If the file is no config, or cannot be read.
    """
    if path.suffix != '.py':
        raise GuardConfigError(f'{path} is no Python file (.py).')
    # newline='' keeps the file's line ends, which a translation would lose.
    with path.open(encoding='utf-8', newline='') as file:
        text = file.read()
    source = Source(text, str(path))
    notes = Notes()
    made = Migration(path, source, load(path), load_bases(path), notes)
    find_old(made)
    choose_guard(made, overlay, guard)
    # Determined before the steps, which remove keys from made.old that they
    # cannot migrate.
    is_1x = bool(made.old)
    # Notes without a line are printed in the order of the steps.
    for step in (
        migrate_wrapper,
        migrate_schedules,
        migrate_loops,
        migrate_resume,
        migrate_data,
        migrate_hooks,
        migrate_environment,
    ):
        step(made)
    # A removed hook may have a limit, which goes into the guard of the new
    # wrapper: the wrapper has to exist.
    migrate_custom_hooks(made, is_1x)
    migrate_model(made)
    # The keys of 2.x can be ordered in the file once all of them are known.
    place(made)
    report_remaining(made, path, is_1x)
    return Migrated(text, source.code(), notes)


def choose_guard(
    m: Migration,
    overlay: Callable[[str], Mapping[str, ConfigValue]],
    name: Optional[str],
) -> None:
    """Set the guard that is named, or the guard for the config's precision."""
    precision = 'fp32'
    if is_half(m.cfg, m.old):
        precision = 'fp16'
    chosen = overlay(name or precision)
    wrapper = dict(chosen.get('optim_wrapper') or {})
    if 'type' not in wrapper:
        # The overlay sets the policy alone, so the config keeps its precision.
        wrapper = {**overlay(precision)['optim_wrapper'], **wrapper}
    # The overlay of fp16 has dtype='float16'. Merged over a base of bfloat16
    # it would change the precision, unless the user asked for it by name.
    dtype = (m.inherited.get('optim_wrapper') or {}).get('dtype')
    if dtype and not name and precision == 'fp16':
        wrapper['dtype'] = dtype
    hooks = chosen.get('default_hooks') or {}
    m.guard = dict(optim_wrapper=wrapper, default_hooks=hooks)
    m.is_named = name is not None


def find_old(m: Migration) -> None:
    """Collect the keys of 1.x that can be migrated; report the rest."""
    for key, targets in TARGETS.items():
        if key in m.source.tangled:
            # With several assignments or a change in place, no single
            # statement shows the value, so none can be replaced.
            lines = ', '.join(map(str, m.source.tangled[key]))
            m.left(
                key,
                f'{key} is set or changed at lines {lines}: write it '
                'in one place, and run this again',
            )
        elif key in m.source.assigned:
            rival = find_rival(m, targets)
            if rival is None:
                m.old.add(key)
            # A variable of a config of 2.x may have the name of a key of 1.x.
            elif not m.source.readers(key, m.source.place[key]):
                m.left(
                    key,
                    f'{key} has no effect: MMEngine reads {rival} '
                    f'(line {m.line(rival)}) alone{SILENT.get(key, "")}; '
                    'delete one of the two',
                )


def find_rival(m: Migration, targets: Iterable[str]) -> Optional[str]:
    """Return the key of 2.x in the file that overrides a key of 1.x.

    MMEngine reads only the key of 2.x if a file has both.

    Args:
        m: The migration.
        targets: The keys of 2.x that the key of 1.x becomes.
    """
    for target in targets:
        # default_hooks is no rival: the file's entries stay, and the entries
        # for the migrated hooks are added beside them.
        if target in m.source.assigned and target != 'default_hooks':
            return target
    return None


# How training changes because MMEngine ignores a key of 1.x.
SILENT = {
    'fp16': ', so that training is in float32 unless its type says otherwise',
    'optimizer_config': ', so that nothing is clipped or accumulated unless '
    'it says so',
}


def report_remaining(m: Migration, path: Path, is_1x: bool) -> None:
    """Report what the user has to do outside of the migrated keys."""
    for base, keys in old_bases(path).items():
        m.left((), f'{base} is of 1.x as well ({", ".join(keys)}): migrate it')
    for key, names in same_targets(path).items():
        m.left(
            (),
            f'{", ".join(names)} would all set {key}, which MMEngine '
            'refuses of bases beside one another: keep it in one',
        )
    if not is_1x:
        return
    # mmcv normalized images in the pipeline (the transform Normalize);
    # MMEngine does it on the device, in the model's data_preprocessor.
    if 'img_norm_cfg' in m.source.assigned:
        m.left('img_norm_cfg', 'normalising moves to model.data_preprocessor')
    # A config without a model is only a base of other files.
    if 'model' in m.cfg and 'default_scope' not in m.cfg:
        m.left(
            (),
            "default_scope: the name of your project's package, such "
            "as 'mmdet', in which MMEngine looks for its classes",
        )
