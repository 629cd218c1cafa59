"""The config of a replay, from a dump or a file.

A dump may come from anybody. The text of its config is read as data
(``plain_config``), and each type that it names by an import path is checked
before it is built, since a registry imports and calls whatever it is given.
"""

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
from .batch_dump import Dump
from .plain_config import NEEDED, parse_config

__all__ = ['IMPORT_HINT', 'KEYS', 'hooks_inside', 'read_config']

# The parts of a config that Runner needs for a forward and backward pass.
KEYS = ('model', 'data_preprocessor', 'env_cfg', 'default_scope')

# Subclasses of these are safe to build from a file's text, like all that is
# registered: their constructors build parts of a model or of a training.
BASES = (nn.Module, Optimizer, Hook)
IMPORT_HINT = (
    'Modules of your project must be importable: run this where training was '
    'started, or name their folder in PYTHONPATH.'
)


def read_config(
    path: Path, dump: Dump, file: Optional[str], is_trusted: bool
) -> Config:
    """Return the config of a dump, read as data, or that of a file.

    Args:
        path: The dump file.
        dump: The content of the dump file.
        file: A config file to use instead of the config in the dump.
        is_trusted: Whether to skip the check of the types that a dump's
            config names.

    Raises:
        NanGuardError: If the config cannot be read, or names a type that is
            not safe to build.
    """
    # The user's own file is run, as in training.
    if file is not None:
        return _read_file(file)
    try:
        cfg = Config(parse_config(dump['config']))
    except (ValueError, KeyError) as error:
        # Config raises a KeyError for its reserved keys.
        raise NanGuardError(
            f'{path} cannot be run as it is: its config {error}. Give '
            '--config, a file with `model` and `optim_wrapper`.'
        ) from error
    # Imported first, because a module may register the types that are checked
    # next.
    _import_modules(path, cfg)
    if not is_trusted:
        # Only the parts that are built: a dataset may name anything.
        parts = list(map(cfg.get, dict.fromkeys((*KEYS, *NEEDED))))
        for _, hook in hooks_inside(cfg):
            parts.append(hook)
        for name in _import_paths(parts):
            _check_type(path, name)
    return cfg


def _import_modules(path: Path, cfg: Config) -> None:
    """Import the modules of the config's ``custom_imports``.

    Raises:
        NanGuardError: If a module is missing or fails.
    """
    try:
        import_modules_from_strings(
            **(cfg.get('custom_imports') or dict(imports=[]))
        )
    except Exception as error:
        # A module may raise anything. MMEngine raises a bare ImportError, and
        # the reason is its __context__.
        raise NanGuardError(
            f"{path}: its config's custom_imports fail ({error}: "
            f'{error.__context__}). {IMPORT_HINT}'
        ) from error


def hooks_inside(
    cfg: Config,
) -> Iterator[Tuple[Type[ModelChanger], Dict[str, Any]]]:
    """Yield class and config of each hook that changes a forward pass.

    Only registered classes count, and nothing is imported: a dump's config
    may name anything.
    """
    hooks = [
        *(cfg.get('default_hooks') or {}).values(),
        *(cfg.get('custom_hooks') or []),
    ]
    for hook in hooks:
        # A default hook that is switched off is None.
        if not isinstance(hook, dict):
            continue
        kind = hook.get('type')
        if isinstance(kind, str):
            kind = _registered_hook(kind)
        # In a lazy config, the type is the class itself.
        if isinstance(kind, type) and issubclass(kind, ModelChanger):
            yield kind, hook


def _registered_hook(name: str) -> Optional[type]:
    """Return the hook class of a name with or without a scope, or None."""
    name = name.split('.')[-1]
    for node in _registries(registry.HOOKS):
        if name in node.module_dict:
            kind: type = node.module_dict[name]
            return kind
    return None


def _read_file(file: str) -> Config:
    """Read a config file of the user.

    Raises:
        NanGuardError: If it cannot be read, or lacks a part that is needed.
    """
    try:
        cfg = Config.fromfile(file)
    except Exception as error:
        # A config is Python code and may raise anything.
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


def _import_paths(value: object) -> Iterator[str]:
    """Yield types that are named by an import path, such as 'os.system'."""
    if isinstance(value, dict):
        for key, part in value.items():
            # MMEngine builds the strings under these two keys.
            if key in ('type', 'constructor') and isinstance(part, str):
                if '.' in part:
                    yield part
            else:
                yield from _import_paths(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _import_paths(part)


def _check_type(path: Path, name: str) -> None:
    """Check that a type is safe to build.

    A registry imports and calls a type that it does not know.

    Args:
        path: The dump file, for the error.
        name: The import path of the type.

    Raises:
        NanGuardError: If the type cannot be imported, or is not safe.
    """
    try:
        kind = get_object_from_string(name)
    except Exception as error:
        # The module of the type is imported and may raise anything.
        raise NanGuardError(
            f'{path}: its config names {name}, which cannot be imported '
            f'({type(error).__name__}: {error}). {IMPORT_HINT}'
        ) from error
    is_safe = isinstance(kind, type) and issubclass(kind, BASES)
    # `kind` is None for a name with a scope, such as 'mmdet.DETR', which is no
    # import path.
    if kind is None or is_safe or _is_registered(kind):
        return
    raise NanGuardError(
        f'{path}: its config names {name}, which is in no registry and no '
        'module, optimizer or hook: a file could run any code so. If you '
        'trust it, allow it with --allow-pickle, or give --config.'
    )


def _is_registered(kind: object) -> bool:
    """Whether an object is in a registry of MMEngine or in a child of it."""
    for root in vars(registry).values():
        if not isinstance(root, Registry):
            continue
        for node in _registries(root):
            # By identity, because a class may define any equality.
            if any(known is kind for known in node.module_dict.values()):
                return True
    return False


def _registries(root: Registry) -> Iterator[Registry]:
    """Yield a registry and all registries below it."""
    yield root
    for child in root.children.values():
        yield from _registries(child)
