"""Placement of the new statements where the old ones stood."""

from typing import List

import libcst as cst

from .config_value import ConfigDict, ConfigValue
from .dict_source import entries_of
from .migration import TARGETS, Migration
from .render import Kept

__all__ = ['place']

# The order in which statements are written if a key of 1.x becomes several.
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
# Keys of 1.x beside which a new key is written too, though TARGETS has it
# elsewhere.
MORE = {
    'val_cfg': ['data'],
    'test_cfg': ['data'],
    'model_wrapper_cfg': ['optimizer_config'],
    'load_from': ['resume_from'],
}


def place(m: Migration) -> None:
    """Enter the new statements into the source, each at its place."""
    source = m.source
    gone = {key for key in m.old if not report_users(m, key)}
    source.new = {source.place[key]: [] for key in m.old}
    source.stays = {source.place[key] for key in m.old - gone}
    for name, value in entries_for_default_hooks(m).items():
        m.new[name] = value
    for name in ORDER:
        if name not in m.new:
            continue
        origins = [key for key, new in TARGETS.items() if name in new]
        keys = [key for key in origins + MORE.get(name, []) if key in m.old]
        if name in source.assigned and name not in m.old:
            # The file has this key of 2.x already: it is edited.
            at = source.place[name]
            source.new[at] = edited(m, name)
        elif not keys:
            source.last.append(source.render(name, m.new[name], gone))
            continue
        else:
            at = source.place[keys[0]]
            unknown = {*gone, *source.defined_after(at)}
            text = source.render(name, m.new[name], unknown)
            source.new.setdefault(at, []).append(text)
        for key in keys:
            source.heir.setdefault(source.place[key], at)


def edited(m: Migration, name: str) -> List[str]:
    """Return the new source of a key of 2.x that the file has."""
    if name == 'custom_hooks' and is_empty(m.source.assigned[name]):
        # An empty list still replaces the one of a base.
        if m.inherited.get(name):
            return ['custom_hooks = []']
        return []
    value = m.new[name]
    if value is None or isinstance(value, dict):
        return [m.source.edited(name, value or {})]
    return [m.source.render(name, value, m.old)]


def report_users(m: Migration, key: str) -> List[int]:
    """Report and return the lines that still read a key of 1.x."""
    lines = m.source.users(key, m.old)
    if lines:
        line_numbers = ', '.join(map(str, lines))
        m.left(key, f'{key} stays, because line {line_numbers} reads it')
    return lines


def entries_for_default_hooks(m: Migration) -> ConfigDict:
    """Return ``default_hooks`` with the new hooks; empty if not possible."""
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
    node = m.source.assigned.get('default_hooks')
    if node is None:
        return dict(default_hooks=m.hooks)
    existing = entries_of(node)
    if existing is None:
        m.left('default_hooks', f'it is computed: add {", ".join(m.hooks)}')
        return {}
    new = {k: v for k, v in m.hooks.items() if k not in existing}
    for name in {*m.hooks} - {*new} - {*m.guard['default_hooks']}:
        m.left(
            ('default_hooks', name),
            f'{name} is there already: what 1.x says of it was not added',
        )
    if not new:
        return {}
    return dict(default_hooks=plain(m, new))


def plain(m: Migration, value: ConfigValue) -> ConfigValue:
    """Replace the kept parts of a value by values.

    An edit of an existing dict cannot move source into it.
    """
    if isinstance(value, Kept):
        return value.value
    if isinstance(value, dict):
        return {key: plain(m, item) for key, item in value.items()}
    if value is None:
        # For an edit, None itself means to remove the entry.
        return cst.Name('None')
    return value


def is_empty(node: cst.BaseExpression) -> bool:
    """Whether a node is an empty list or tuple."""
    return isinstance(node, (cst.List, cst.Tuple)) and not node.elements
