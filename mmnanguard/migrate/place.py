"""New statements, where the old ones stood."""

from typing import Any, Dict, List

import libcst as cst

from .dict_source import entries_of
from .migration import TARGETS, Migration
from .render import Kept

__all__ = ['place']

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


def place(m: Migration) -> None:
    """Tell the source what becomes of its statements."""
    source = m.source
    gone = {key for key in m.old if not tell_users(m, key)}
    source.new = {source.place[key]: [] for key in m.old}
    source.stays = {source.place[key] for key in m.old - gone}
    for name, value in entries_for_default_hooks(m).items():
        m.new[name] = value
    for name in ORDER:
        if name not in m.new:
            continue
        keys = [key for key, new in TARGETS.items() if name in new]
        keys = [key for key in keys + MORE.get(name, []) if key in m.old]
        if name in source.assigned and name not in m.old:
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
    for name in {*m.hooks} - {*new} - {*m.guard['default_hooks']}:
        m.left(
            ('default_hooks', name),
            f'{name} is there already: what 1.x says of it was not added',
        )
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
