"""The classes that a config names, from MMEngine's registries."""

import logging
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    RUNNERS,
    STRATEGIES,
    Registry,
)

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import did_you_mean

from .finding import Finding, fail
from .reading import cure_of_missing

__all__ = [
    'NamedClass',
    'collected_logs',
    'find_class',
    'find_classes',
    'look_at_classes',
    'wrappers_in',
]


UNREGISTERED = 'it is not registered.'
ROLES = (
    'model',
    'dataset',
    'loop',
    'runner',
    'strategy',
    'wrapper',
    'optimizer',
    'hook',
)


class NamedClass(NamedTuple):
    """A type that a config names.

    Attributes:
        where: The path of the dict in the config, such as 'custom_hooks[0]'.
        config: The dict.
        kind: The class, or another callable; None if it is not found.
        reason: Why it is not found; '' if it is.
    """

    where: str
    config: Mapping[str, Any]
    kind: Any
    reason: str

    @property
    def name(self) -> str:
        """The bare name of the type."""
        return bare(self.kind or self.config.get('type'))


def find_class(
    registry: Registry, where: str, config: Mapping[str, Any], default: str
) -> NamedClass:
    """Look up the type of a config's dict, as building it would.

    Args:
        registry: The registry to search.
        where: The path of the dict.
        config: The dict.
        default: The type if the dict has none.
    """
    type_ = config.get('type') or default
    try:
        kind = type_
        if isinstance(type_, str):
            scope = config.get('_scope_')
            # The default scope of the config, as in Registry.build.
            with registry.switch_scope_and_registry(scope) as scoped:
                kind = scoped.get(type_)
    except Exception as error:  # the import of a project's modules
        return NamedClass(
            where, config, None, f'{type(error).__name__}: {error}'
        )
    if kind is not None:
        return NamedClass(where, config, kind, '')
    hint = did_you_mean(bare(type_), names_in(registry))
    return NamedClass(where, config, None, f'{UNREGISTERED} {hint}'.strip())


def find_classes(cfg: Config) -> Dict[str, List[NamedClass]]:
    """Look up the types of a config on which the guard depends, by role.

    Roles are 'model', 'dataset', 'loop', 'runner', 'strategy', 'wrapper',
    'optimizer' and 'hook'. A role that the config does not have is empty.
    """
    loop_cfg = cfg.get('train_cfg') or {}
    loop = 'IterBasedTrainLoop'
    if loop_cfg.get('by_epoch', 'max_epochs' in loop_cfg):
        loop = 'EpochBasedTrainLoop'
    runner = dict(type=cfg.get('runner_type') or 'Runner')
    nodes = [
        ('model', MODELS, 'model', cfg.get('model'), ''),
        ('dataset', DATASETS, 'train_dataloader.dataset', dataset_of(cfg), ''),
        ('loop', LOOPS, 'train_cfg', loop_cfg, loop),
        ('runner', RUNNERS, 'runner_type', runner, ''),
        ('strategy', STRATEGIES, 'strategy', cfg.get('strategy'), ''),
    ]
    for where, wrapper in wrappers_in(cfg.get('optim_wrapper')):
        nodes.append(
            ('wrapper', OPTIM_WRAPPERS, where, wrapper, 'OptimWrapper')
        )
        optimizer = wrapper['optimizer']
        nodes.append(
            ('optimizer', OPTIMIZERS, f'{where}.optimizer', optimizer, '')
        )
    for where, hook in hooks_in(cfg):
        nodes.append(('hook', HOOKS, where, hook, ''))
    classes: Dict[str, List[NamedClass]] = {role: [] for role in ROLES}
    for role, registry, where, node, default in nodes:
        if isinstance(node, Mapping) and (node.get('type') or default):
            classes[role].append(find_class(registry, where, node, default))
    return classes


def look_at_classes(
    path: str, cfg: Config, classes: Mapping[str, List[NamedClass]]
) -> List[Finding]:
    """Return a finding on each type that is not found.

    Args:
        path: The path of the config.
        cfg: The config.
        classes: Its classes by role.
    """
    scope = str(cfg.get('default_scope') or 'mmengine')
    if find_spec(scope) is None:
        # One finding, in place of one for each type of the project.
        text = f'default_scope is {scope!r}, which is not installed.'
        return [fail(text, *cure_of_missing(scope, path))]
    if any(named.reason for named in chain.from_iterable(classes.values())):
        broken = import_project(scope)
        if broken is not None:
            return [broken]
    findings = []
    for named in chain.from_iterable(classes.values()):
        if not named.reason:
            continue
        cure = ''
        if named.reason == UNREGISTERED:
            cure = (
                'Install the project that has it, or name the module that '
                "registers it in custom_imports=dict(imports=['...'])."
            )
        reason = named.reason.splitlines()[0]
        findings.append(
            fail(f'{named.where}.type={named.name!r}: {reason}', cure)
        )
    return findings


def import_project(scope: str) -> Optional[Finding]:
    """Import what registers the types of a project; return why that fails.

    MMEngine imports it as well, and says nothing if that fails.
    """
    modules = [f'{scope}.registry']
    for root in (MODELS, DATASETS, HOOKS):
        modules += getattr(root.children.get(scope), '_locations', ())
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # whatever a project raises
            # A project need not have a registry of its own.
            if getattr(error, 'name', '') == modules[0]:
                continue
            text = f'{type(error).__name__}: {error}'.splitlines()[0]
            return fail(
                f'{scope} cannot be imported: {text}',
                f'Its types are unknown until `import {module}` works.',
            )
    return None


def wrappers_in(node: Any, where: str = 'optim_wrapper') -> Iterator[Any]:
    """Yield path and dict of each optimizer wrapper in ``optim_wrapper``."""
    if not isinstance(node, Mapping):
        return
    if isinstance(node.get('optimizer'), Mapping):
        yield where, node
        return
    for key, value in node.items():
        yield from wrappers_in(value, f'{where}.{key}')


def hooks_in(cfg: Config) -> Iterator[Any]:
    """Yield path and dict of each hook."""
    for key, hook in (cfg.get('default_hooks') or {}).items():
        # None switches a default hook off.
        if hook is not None:
            yield f'default_hooks.{key}', hook
    for index, hook in enumerate(cfg.get('custom_hooks') or ()):
        yield f'custom_hooks[{index}]', hook


def dataset_of(cfg: Config) -> Optional[Any]:
    """Return the config of the training dataset, if there is one."""
    loader = cfg.get('train_dataloader')
    return loader.get('dataset') if isinstance(loader, Mapping) else None


def names_in(registry: Registry) -> List[str]:
    """Return all names in a registry and in those of other scopes."""
    names = list(registry.module_dict)
    for child in registry.children.values():
        names += child.module_dict
    return names


def bare(type_: Any) -> str:
    """Return the bare name of a type, which is a class or a name."""
    return str(getattr(type_, '__name__', type_)).split('.')[-1]


class Collector(logging.Handler):
    """A handler that keeps messages in place of writing them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: List[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


@contextmanager
def collected_logs() -> Iterator[List[logging.LogRecord]]:
    """Collect what is written to MMEngine's current logger."""
    logger = MMLogger.get_current_instance()
    handlers, level = logger.handlers, logger.level
    collector = Collector()
    logger.handlers, logger.level = [collector], logging.INFO
    try:
        yield collector.records
    finally:
        logger.handlers, logger.level = handlers, level


def error_text(error: Exception) -> str:
    """Return an error as a clause, without a name that the user knows."""
    if isinstance(error, GuardConfigError):
        return str(error)
    return f'{type(error).__name__}: {error}'
