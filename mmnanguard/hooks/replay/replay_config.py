from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Type

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string, import_modules_from_strings
from torch import nn
from torch.optim import Optimizer

from mmnanguard.core import NanGuardError

from .._shared.roles import ModelChanger
from .plain_config import NEEDED, parse_config

__all__ = ['IMPORT_HINT', 'KEYS', 'hooks_inside', 'read_config']

# What of a config a pass needs.
KEYS = ('model', 'data_preprocessor', 'env_cfg', 'default_scope')

# What is safe to build from a file's text, beside what is registered.
BASES = (nn.Module, Optimizer, Hook)
IMPORT_HINT = (
    'Modules of your project must be importable: run this where training was '
    'started, or name their folder in PYTHONPATH.'
)


def read_config(
    path: Path, dump: Dict[str, Any], file: Optional[str], is_trusted: bool
) -> Config:
    """The dump's own config as data, or a file's.

    Args:
        path: Of the dump.
        dump: What it holds.
        file: In place of the dump's own.
        is_trusted: Leave out the check of types that a dump's config names.

    Raises:
        NanGuardError: If it cannot be read, or is not one to build.
    """
    if file is not None:
        return _read_file(file)
    try:
        cfg = Config(parse_config(dump['config']))
    except (ValueError, KeyError) as error:  # a KeyError: reserved keys
        raise NanGuardError(
            f'{path} cannot be run as it is: its config {error}. Give '
            '--config, a file with `model` and `optim_wrapper`.'
        ) from error
    try:
        import_modules_from_strings(
            **(cfg.get('custom_imports') or dict(imports=[]))
        )
    except Exception as error:  # a module's own, too
        raise NanGuardError(
            f"{path}: its config's custom_imports fail ({error}: "
            f'{error.__context__}). {IMPORT_HINT}'
        ) from error
    if not is_trusted:
        parts = {key: cfg.get(key) for key in (*KEYS, *NEEDED)}
        hooks = [config for _, config in hooks_inside(cfg)]
        for name in _places([parts, *hooks]):
            _check_type(path, name)
    return cfg


def hooks_inside(
    cfg: Config,
) -> Iterator[Tuple[Type[ModelChanger], Dict[str, Any]]]:
    """Yield class and config of each hook that changes what a pass computes.

    Only registered classes count, and nothing is imported: a dump's config
    may name anything.
    """
    hooks = [*(cfg.get('default_hooks') or {}).values()]
    for hook in [*hooks, *(cfg.get('custom_hooks') or [])]:
        kind = hook.get('type') if isinstance(hook, dict) else None
        if isinstance(kind, str):
            name = kind.split('.')[-1]
            kind = next(
                (
                    node.module_dict[name]
                    for node in _registries(registry.HOOKS)
                    if name in node.module_dict
                ),
                None,
            )
        # A class in lazy configs.
        if isinstance(kind, type) and issubclass(kind, ModelChanger):
            yield kind, hook


def _read_file(file: str) -> Config:
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # it runs the file
        raise NanGuardError(
            f'--config {file} cannot be read ({type(error).__name__}: '
            f'{error}). {IMPORT_HINT}'
        ) from error
    for key in NEEDED:
        if not cfg.get(key):
            raise NanGuardError(
                f'--config {file} has no `{key}`. It takes a whole config, '
                'with `model` and `optim_wrapper`.'
            )
    return cfg


def _places(value: object) -> Iterator[str]:
    """Types that are named by where they are, such as 'os.system'."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ('type', 'constructor') and isinstance(part, str):
                if '.' in part:
                    yield part
            else:
                yield from _places(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _places(part)


def _check_type(path: Path, name: str) -> None:
    """A registry imports and calls what it does not know."""
    try:
        found = get_object_from_string(name)
    except Exception as error:  # a module's own
        raise NanGuardError(
            f'{path}: its config names {name}, which cannot be imported '
            f'({type(error).__name__}: {error}). {IMPORT_HINT}'
        ) from error
    is_known = isinstance(found, type) and issubclass(found, BASES)
    if found is None or is_known or _is_registered(found):
        return
    raise NanGuardError(
        f'{path}: its config names {name}, which is in no registry and no '
        'module, optimizer or hook: a file could run any code so. If you '
        'trust it, allow it with --allow-pickle, or give --config.'
    )


def _is_registered(found: object) -> bool:
    roots = [r for r in vars(registry).values() if isinstance(r, Registry)]
    return any(
        known is found
        for node in _registries(*roots)
        for known in node.module_dict.values()
    )


def _registries(*nodes: Registry) -> Iterator[Registry]:
    """Yield registries and all that are below them."""
    for node in nodes:
        yield node
        yield from _registries(*node.children.values())
