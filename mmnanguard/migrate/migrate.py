"""A config of 1.x, or an unguarded one, as a guarded one of MMEngine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import libcst as cst

from mmnanguard.core import GuardConfigError

from .bases import load, load_bases, old_bases, same_targets
from .dict_source import entries_of
from .environment import migrate_environment
from .hooks import migrate_custom_hooks, migrate_hooks
from .loops import migrate_data, migrate_loops, migrate_resume
from .migration import TARGETS, Migration
from .notes import Notes
from .render import Kept
from .schedules import migrate_schedule
from .source import Source
from .twins import is_half
from .wrapper import migrate_wrapper

__all__ = ['Migrated', 'migrate']


@dataclass(frozen=True)
class Migrated:
    """The new file.

    Attributes:
        old: The text that was.
        new: The text that it became; the same if there is nothing to do.
        notes: What is to be said.
    """

    old: str
    new: str
    notes: Notes


def migrate(
    path: Path,
    overlay: Callable[[str], Mapping[str, Any]],
    guard: Optional[str] = None,
) -> Migrated:
    """Migrate one file; it is left as it is.

    The file is run, as MMEngine runs any config, and its bases with it.

    Args:
        path: Of a Python config.
        overlay: Gives a guard's overlay by its name.
        guard: Its name; None takes the precision that the config has.

    Raises:
        GuardConfigError: If it is no config.
    """
    if path.suffix != '.py':
        raise GuardConfigError(f'{path} is no Python file (.py).')
    with path.open(encoding='utf-8', newline='') as file:
        text = file.read()
    source = Source(text, str(path))
    notes = Notes()
    made = Migration(source, load(path), load_bases(path), notes)
    find_old(made)
    choose_guard(made, overlay, guard)
    is_1x = bool(made.old)
    for step in (
        migrate_wrapper,
        schedulers,
        migrate_loops,
        migrate_resume,
        migrate_data,
        migrate_hooks,
        migrate_environment,
    ):
        step(made)
    migrate_custom_hooks(made, is_1x)
    place(made)
    tell_of_the_rest(made, path, is_1x)
    return Migrated(text, source.code(), notes)


def choose_guard(
    m: Migration,
    overlay: Callable[[str], Mapping[str, Any]],
    name: Optional[str],
) -> None:
    precision = 'fp16' if is_half(m.cfg, m.old) else 'fp32'
    chosen = overlay(name or precision)
    wrapper = dict(chosen.get('optim_wrapper') or {})
    if 'type' not in wrapper:  # it keeps the precision
        wrapper = {**overlay(precision)['optim_wrapper'], **wrapper}
    there = (m.inherited.get('optim_wrapper') or {}).get('dtype')
    if there and not name and precision == 'fp16':
        wrapper['dtype'] = there
    hooks = chosen.get('default_hooks') or {}
    m.guard = dict(optim_wrapper=wrapper, default_hooks=hooks)
    m.is_named = name is not None


def find_old(m: Migration) -> None:
    """The keys of 1.x that can be migrated, and why the others cannot."""
    for key, targets in TARGETS.items():
        if key in m.source.tangled:
            lines = ', '.join(map(str, m.source.tangled[key]))
            m.left(
                key,
                f'{key} is set or changed at lines {lines}: write it '
                'in one place, and run this again',
            )
        elif key in m.source.assigned:
            both = [
                new
                for new in targets
                if new in m.source.assigned and new != 'default_hooks'
            ]
            if both:
                m.left(
                    key,
                    f'{key} has no effect: MMEngine reads {both[0]} '
                    f'(line {m.line(both[0])}) alone{SILENT.get(key, "")}; '
                    'delete one of the two',
                )
            else:
                m.old.add(key)


SILENT = {
    'fp16': ', so that training is in float32 unless its type says otherwise',
    'optimizer_config': ', so that nothing is clipped or accumulated unless '
    'it says so',
}


def schedulers(m: Migration) -> None:
    if not {'lr_config', 'momentum_config'} & m.old:
        return
    made: List[Any] = []
    for name, of in (('lr_config', 'lr'), ('momentum_config', 'momentum')):
        config = m.cfg.get(name)
        if config is None:
            continue
        optimizer = m.cfg.get('optimizer') or {}
        if isinstance(m.cfg.get('optim_wrapper'), dict):
            optimizer = m.cfg['optim_wrapper'].get('optimizer', optimizer)
        base = optimizer.get(of, (optimizer.get('betas') or [None])[0])
        schedule = migrate_schedule(name, config, m.loop, base)
        for told in schedule.changed:
            m.changed(name, told)
        for told in schedule.left:
            m.left(name, told)
        if schedule.left:
            m.old.discard(name)
        elif name in m.old:
            m.done(name, f'{name} -> param_scheduler')
        made += schedule.schedulers
    if {'lr_config', 'momentum_config'} & m.old:
        m.new['param_scheduler'] = made


def place(m: Migration) -> None:
    """New statements where the old ones stood."""
    source = m.source
    gone = {key for key in m.old if not tell_users(m, key)}
    source.new = {source.place[key]: [] for key in m.old}
    source.stays = {source.place[key] for key in m.old - gone}
    for name, value in entries_for_default_hooks(m).items():
        m.new[name] = value
    for name in ORDER:
        if name not in m.new:
            continue
        if name in source.assigned and name not in m.old:
            source.new[source.place[name]] = edited(m, name)
            continue
        keys = [key for key, new in TARGETS.items() if name in new]
        keys = [key for key in keys + MORE.get(name, []) if key in m.old]
        if not keys:
            source.last.append(source.render(name, m.new[name], gone))
            continue
        at = source.place[keys[0]]
        unknown = {*gone, *source.defined_after(at)}
        text = source.render(name, m.new[name], unknown)
        source.new.setdefault(at, []).append(text)
        for key in keys:
            source.heir.setdefault(source.place[key], at)


def edited(m: Migration, name: str) -> List[str]:
    """A key of 2.x that the file has."""
    if name == 'custom_hooks' and is_empty(m.source.assigned[name]):
        # An empty list still replaces the one of a base.
        return ['custom_hooks = []'] if m.inherited.get(name) else []
    value = m.new[name]
    if value is None or isinstance(value, dict):
        return [m.source.edited(name, value or {})]
    return [m.source.render(name, value, m.old)]


def tell_users(m: Migration, key: str) -> List[int]:
    lines = m.source.users(key, m.old)
    if lines:
        told = ', '.join(map(str, lines))
        m.left(key, f'{key} stays, because line {told} reads it')
    return lines


def entries_for_default_hooks(m: Migration) -> Dict[str, Any]:
    if not m.hooks:
        return {}
    is_part = not {'model', 'default_hooks'} & {*m.cfg} and not m.inherited
    if is_part and {*m.hooks} == {*m.guard['default_hooks']}:
        m.left(
            (),
            'this looks like a part for _base_, of which only one may have '
            f'default_hooks: add {", ".join(m.hooks)} to the config that you '
            'train with',
        )
        return {}
    own = m.source.assigned.get('default_hooks')
    if own is None:
        return dict(default_hooks=m.hooks)
    there = entries_of(own)
    if there is None:
        m.left('default_hooks', f'it is computed: add {", ".join(m.hooks)}')
        return {}
    new = {k: v for k, v in m.hooks.items() if k not in there}
    return dict(default_hooks=plain(m, new)) if new else {}


def plain(m: Migration, value: Any) -> Any:
    """For an edit, which takes no source that would have to be moved."""
    if isinstance(value, Kept):
        return value.value
    if isinstance(value, dict):
        return {key: plain(m, each) for key, each in value.items()}
    return cst.Name('None') if value is None else value


def is_empty(node: Any) -> bool:
    return isinstance(node, (cst.List, cst.Tuple)) and not node.elements


# Where statements are written when one key of 1.x becomes several.
ORDER = (
    'custom_hooks',
    'optim_wrapper',
    'model_wrapper_cfg',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_cfg',
    'test_cfg',
    'default_hooks',
    'log_processor',
    'visualizer',
    'resume',
    'load_from',
    'env_cfg',
    'randomness',
)
MORE = {
    'val_cfg': ['data'],
    'test_cfg': ['data'],
    'model_wrapper_cfg': ['optimizer_config'],
    'load_from': ['resume_from'],
}


def tell_of_the_rest(m: Migration, path: Path, is_1x: bool) -> None:
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
    if 'img_norm_cfg' in m.source.assigned:
        m.left('img_norm_cfg', 'normalising moves to model.data_preprocessor')
    if 'model' in m.cfg and 'default_scope' not in m.cfg:
        m.left(
            (),
            "default_scope: the name of your project's package, such "
            "as 'mmdet', in which MMEngine looks for its classes",
        )
