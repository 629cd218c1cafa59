"""Child registries, so that ``type='mmnanguard.X'`` builds by itself.

``Registry.get`` imports ``<scope>.registry`` when it meets a scoped type, and
``locations`` are imported on the first look-up. The file must therefore keep
this name, and a config needs no ``custom_imports`` for scoped types.
"""

from functools import wraps
from inspect import signature
from typing import Any, Callable, Optional, Sequence, Union

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys, did_you_mean

__all__ = [
    'CHECKS',
    'CLIPS',
    'DATASETS',
    'FAULTS',
    'HOOKS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'TRANSFORMS',
    'get_registered',
    'register_bare_names',
    'register_configs',
]


# A class, or a function that builds an object.
Registered = Union[type, Callable[..., object]]


class GuardRegistry(Registry):
    """A registry whose errors suggest the nearest name, and argument."""

    def _register_module(
        self, module: type, *args: Any, **options: Any
    ) -> None:
        super()._register_module(module, *args, **options)
        if isinstance(module, type):
            check_arguments(module)

    # MMEngine annotates types only, and registers functions as well.
    def get(  # type: ignore[override]
        self, key: str
    ) -> Optional[Registered]:
        """Return the class of a name, or None for a name of another scope.

        Raises:
            GuardConfigError: If a name without a scope, or with this one, is
                unknown.
        """
        registered: Optional[Registered] = super().get(key)
        *scopes, name = key.split('.')
        if registered is None and scopes in ([], [self.scope]):
            raise GuardConfigError(
                f"mmnanguard has no {self.name} '{name}': "
                f'{did_you_mean(name, self.module_dict)}It has '
                f'{", ".join(sorted(self.module_dict))}.'
            )
        return registered

    def __contains__(self, key: str) -> bool:
        # Asking for a name must not raise, as get() does.
        return super().get(key) is not None


def check_arguments(kind: type) -> None:
    """Let a class name the arguments that it has beside an unknown one.

    It raises a ``GuardConfigError``; Python's own error does not say which
    arguments there are. A class that takes any keywords is left as it is.
    """
    init = kind.__init__  # type: ignore[misc]
    allowed = []
    for name, parameter in signature(init).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            return
        allowed.append(name)

    @wraps(init)
    def checked(self: object, *args: Any, **options: Any) -> None:
        check_keys(options, allowed[1:], type(self).__name__)
        init(self, *args, **options)

    kind.__init__ = checked  # type: ignore[misc]


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
# MMEngine has no such registries; docs/en/extending.md shows how a user's
# project registers in them. ValidateSample and tools/audit_dataset.py use
# CHECKS, optim_wrapper.clip_grad uses CLIPS, FaultInjectionHook uses FAULTS.
CHECKS = Registry(
    'check', scope='mmnanguard', locations=['mmnanguard.datasets']
)
CLIPS = Registry('clip', scope='mmnanguard', locations=['mmnanguard.optim'])
FAULTS = Registry('fault', scope='mmnanguard', locations=['mmnanguard.hooks'])


def get_registered(
    registry: Registry, name: object, where: str, others: Sequence[str] = ()
) -> Registered:
    """Look up an entry of a config: a registered name or a path to import.

    Args:
        registry: The registry to search.
        name: A name such as 'MyClip', 'mmnanguard.ZClip' or
            'my_project.clips.MyClip'.
        where: The key of the config, for the message.
        others: The names that are allowed beside the registered names.

    Raises:
        GuardConfigError: If nothing has this name. The message lists the
            registered names and suggests the nearest.
    """
    reason = None
    registered: Optional[Registered] = None
    if isinstance(name, str):
        try:
            registered = registry.get(name)
        except RuntimeError as error:  # the import of the path fails
            reason = error
    if callable(registered):
        return registered
    known = [*others, *sorted(registry.module_dict)]
    hint = did_you_mean(str(name).split('.')[-1], known)
    names = ', '.join(map(repr, known)) or 'nothing yet'
    raise GuardConfigError(
        f'{where} is {name!r}: {hint}It must be a registered {registry.name} '
        f'({names}); the module of your own must be in custom_imports.'
    ) from reason


def register_bare_names() -> None:
    """Make ``type='NanGuardHook'`` work next to ``'mmnanguard.NanGuardHook'``.

    MMEngine looks up a type without a scope in the registry of the config's
    ``default_scope`` and then in its own root, never in a sibling registry.
    So each class is registered in the root as well.
    """
    for registry in (DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, TRANSFORMS):
        registry.import_from_location()
        root = registry.parent
        assert root is not None  # MMEngine has a root for each
        for name, cls in registry.module_dict.items():
            if root.module_dict.get(name) is not cls:
                root.register_module(name=name, module=cls)


def register_configs() -> None:
    """Let ``get_config`` and ``_base_`` find 'mmnanguard::guards/fp16.py'.

    MMEngine looks for a distribution of this name or, if there is none, for
    a module, and then for ``.mim`` in its folder. The distribution of an
    editable install is in another folder than its files, so this function
    registers the name of a module.
    """
    MODULE2PACKAGE['mmnanguard'] = 'mmnanguard.registry'
