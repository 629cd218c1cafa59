"""Hooks that would end a guarded run at the first update that is skipped."""

import logging
import sys
from typing import Any, List, Optional

from mmengine.config import Config
from mmengine.registry import HOOKS

from mmnanguard._console import say
from mmnanguard.core.hook_source import (
    ENDS_INSTEAD,
    ENDS_RUN,
    STOPPING_HOOKS,
    HookSource,
    ends_run,
)

__all__ = ['leave_out_stopping_hooks']


def leave_out_stopping_hooks(cfg: Config) -> None:
    """Leave out hooks that end the run at a non-finite loss, and log them.

    A hook whose class does more than that stays, and a warning names it.

    Args:
        cfg: The config; its ``custom_hooks`` and ``default_hooks`` change.
    """
    custom = cfg.get('custom_hooks')
    if isinstance(custom, (list, tuple)):
        kept: List[Any] = []
        for index, hook in enumerate(custom):
            if not is_left_out(hook, f'custom_hooks[{index}]'):
                kept.append(hook)
        if len(kept) < len(custom):
            cfg.custom_hooks = kept
    hooks = cfg.get('default_hooks') or {}
    for key in list(hooks):
        if is_left_out(hooks[key], f'default_hooks.{key}'):
            del hooks[key]


def is_left_out(hook: Any, where: str) -> bool:
    """Whether a hook is to be left out; logs it, and a hook that stays."""
    type_ = hook.get('type') if isinstance(hook, dict) else type(hook)
    name = type_.__name__ if isinstance(type_, type) else str(type_)
    kind = class_of(type_)
    if kind is not None:
        if not ends_run(kind):
            return False
    elif name.split('.')[-1] not in STOPPING_HOOKS:
        return False
    stays = kind is not None and HookSource.of_class(kind).does_more()
    outcome = 'it is left out'
    if stays:
        outcome = 'remove that check, or the hook (it does more, so it stays)'
    say(
        f'{where}: {name} {ENDS_RUN}; {outcome}. {ENDS_INSTEAD}.',
        logging.WARNING,
    )
    return not stays


def class_of(type_: Any) -> Optional[type]:
    """Return the class that a type stands for; None if it is not imported."""
    if isinstance(type_, type):
        return type_
    module, _, name = str(type_).rpartition('.')
    # MMEngine also takes the full path of a class. Nothing is imported here.
    kind = getattr(sys.modules.get(module), name, None)
    for registry in (HOOKS, *HOOKS.children.values()):
        kind = kind or registry.module_dict.get(name)
    return kind if isinstance(kind, type) else None
