"""Child registries, so that ``type='mmnanguard.X'`` builds by itself.

``Registry.get`` imports ``<scope>.registry`` when it meets a scoped type, and
``locations`` are imported on the first look-up. The file must therefore keep
this name, and a config needs no ``custom_imports`` for scoped types.
"""

from typing import Optional

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import did_you_mean

__all__ = [
    'CHECKS',
    'DATASETS',
    'HOOKS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'TRANSFORMS',
    'register_bare_names',
    'register_configs',
]


class GuardRegistry(Registry):
    """Asks what a name was meant to be, where MMEngine says that it is not
    there.
    """

    def get(self, key: str) -> Optional[type]:
        found = super().get(key)
        *places, name = key.split('.')
        if found is None and places in ([], [self.scope]):
            raise GuardConfigError(
                f"mmnanguard has no {self.name} '{name}': "
                f'{did_you_mean(name, self.module_dict)}It has '
                f'{", ".join(sorted(self.module_dict))}.'
            )
        return found

    def __contains__(self, key: str) -> bool:
        return super().get(key) is not None


DATASETS = GuardRegistry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmnanguard',
    locations=['mmnanguard.datasets'],
)
HOOKS = GuardRegistry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmnanguard',
    locations=['mmnanguard.hooks'],
)
MODELS = GuardRegistry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmnanguard',
    locations=['mmnanguard.models'],
)
OPTIM_WRAPPERS = GuardRegistry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmnanguard',
    locations=['mmnanguard.optim'],
)
TRANSFORMS = GuardRegistry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmnanguard',
    locations=['mmnanguard.datasets'],
)
# What ValidateSample and tools/audit_dataset.py look at; MMEngine has no such
# registry, and a user's own checks are registered here.
CHECKS = Registry(
    'check', scope='mmnanguard', locations=['mmnanguard.datasets']
)


def register_bare_names() -> None:
    """Make ``type='NanGuardHook'`` work next to ``'mmnanguard.NanGuardHook'``.

    A type without a scope is searched in the registry of the config's
    ``default_scope`` and then in MMEngine's root, never in a sibling. So each
    class stands in the root as well.
    """
    for registry in (DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, TRANSFORMS):
        registry.import_from_location()
        root = registry.parent
        assert root is not None  # each is a child of MMEngine's
        for name, cls in registry.module_dict.items():
            if root.module_dict.get(name) is not cls:
                root.register_module(name=name, module=cls)


def register_configs() -> None:
    """Let ``get_config`` and ``_base_`` find 'mmnanguard::guards/fp16.py'.

    What MMEngine looks up by this name is a distribution or, if there is none
    of it, a module. An editable install's distribution lies elsewhere than
    its files, so that the name of a module is given, whose folder is theirs.
    """
    MODULE2PACKAGE['mmnanguard'] = 'mmnanguard.registry'
