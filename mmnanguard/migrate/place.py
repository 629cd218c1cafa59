"""Placement of the new statements where the old ones stood."""

from typing import List, Optional

import libcst as cst

from .config_value import ConfigDict, ConfigValue, leave_out
from .dict_source import entries_of
from .differences import plain
from .migration import TARGETS, Migration

__all__ = ['ORDER', 'place']

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
# The keys of 1.x beside which a key of 2.x is written that is not in TARGETS,
# because only some configs need it.
MORE = {
    'val_cfg': ['data'],
    'test_cfg': ['data'],
    'model_wrapper_cfg': ['optimizer_config'],
    'load_from': ['resume_from'],
}


def place(m: Migration) -> None:
    """Enter the new statements into the source, each at its place."""
    source = m.source
    gone = set()
    for key in (*m.old, *m.moved):
        # An empty list removes the statement, unless it also stays.
        source.new[source.place[key]] = []
        if report_users(m, key):
            source.stays.add(source.place[key])
        else:
            gone.add(key)
    for name, value in entries_for_default_hooks(m).items():
        m.new[name] = value
    for name in ORDER:
        if name not in m.new:
            continue
        keys = old_keys_of(m, name)
        if name in source.assigned and name not in m.old:
            # The file has this key of 2.x already, so its value is edited.
            at = source.place[name]
            source.new[at] = edited(m, name)
        elif not keys:
            # No key of 1.x in the file becomes this key: the hook is new, or
            # the wrapper is inherited.
            text = source.render(name, m.new[name], gone)
            if m.is_variable(name):
                text = text.replace(' = ', '.update(', 1) + ')'
            source.last.append(text)
            continue
        else:
            at = source.place[keys[0]]
            # The new statement stands at the first key, perhaps above a name
            # that the source of another key uses.
            unknown = {*gone, *source.defined_after(at)}
            text = source.render(name, m.new[name], unknown)
            source.new.setdefault(at, []).append(text)
        # The first key of 2.x inherits the comments: setdefault keeps it.
        for key in keys:
            source.heir.setdefault(source.place[key], at)


def old_keys_of(m: Migration, name: str) -> List[str]:
    """Return the keys of 1.x in the file that become a key of 2.x."""
    keys = []
    for key, targets in TARGETS.items():
        if name in targets:
            keys.append(key)
    keys += MORE.get(name, [])
    return [key for key in keys if key in m.old]


def edited(m: Migration, name: str) -> List[str]:
    """Return the new source of a key of 2.x that the file has."""
    if name == 'custom_hooks' and is_empty(m.source.assigned[name]):
        # An empty list still replaces the list of a base.
        if m.inherited.get(name) or 'read_base' in m.source.text:
            return ['custom_hooks = []']
        return []
    value = m.new[name]
    if value is None or isinstance(value, dict):
        # custom_hooks has no value: its edited source is in m.source.
        return [m.source.edited(name, value or {})]
    return [m.source.render(name, value, m.old)]


def report_users(m: Migration, key: str) -> bool:
    """Report whether something still reads a key of 1.x."""
    lines = m.source.users(key, m.old | m.moved)
    readers = ''
    if lines:
        readers = f'line {", ".join(map(str, lines))}'
    elif key in m.readers:
        readers = m.readers[key]
    if readers:
        m.left(key, f'{key} stays, because {readers} reads it')
    return bool(readers)


def entries_for_default_hooks(m: Migration) -> ConfigDict:
    """Return ``default_hooks`` with the new hooks; empty if not possible."""
    if not m.hooks:
        return {}
    # MMEngine refuses two sibling bases that both set default_hooks.
    is_part = not {'model', 'default_hooks'} & {*m.cfg} and not m.inherited
    if is_part and {*m.hooks} == {*m.guard['default_hooks']}:
        if m.is_alone:
            m.left(
                (),
                'this looks like a part for _base_, of which only one may '
                f'have default_hooks: add {", ".join(m.hooks)} to the config '
                'that you train with',
            )
        return {}
    if 'default_hooks' in m.kept_back:
        return {}
    node = m.source.assigned.get('default_hooks')
    if m.is_variable('default_hooks'):
        existing: Optional[ConfigDict] = m.cfg['default_hooks']
    elif node is None:
        return dict(default_hooks=m.hooks)
    else:
        existing = entries_of(node)
    if existing is None:
        m.left('default_hooks', f'it is computed: add {", ".join(m.hooks)}')
        return {}
    # The user's entry for a hook has priority over a migrated entry. No note
    # names the guard's own hooks: they are there if a guarded config is
    # migrated again.
    new = leave_out(m.hooks, existing)
    for name in {*m.hooks} - {*new} - {*m.guard['default_hooks']}:
        m.left(
            ('default_hooks', name),
            f'{name} is there already: what 1.x says of it was not added',
        )
    if not new:
        return {}
    return dict(default_hooks=for_edit(new))


def for_edit(value: ConfigValue) -> ConfigValue:
    """Return a value with its kept parts replaced by plain values.

    An edit of an existing dict cannot move source into it.
    """
    if isinstance(value, dict):
        return {key: for_edit(item) for key, item in value.items()}
    if value is None:
        # In an edit None would remove the entry.
        return cst.Name('None')
    return plain(value)


def is_empty(node: cst.BaseExpression) -> bool:
    """Whether a node is an empty list or tuple."""
    return isinstance(node, (cst.List, cst.Tuple)) and not node.elements
