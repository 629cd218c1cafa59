"""Planned faults of a fire drill, and the tensors that they strike."""

import inspect
import math
import re
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Callable, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.core.checks import check_keys
from mmnanguard.registry import FAULTS, get_registered

__all__ = ['Fault', 'OwnFault', 'find_target']

SITES = ('input', 'activation', 'loss', 'grad', 'buffer', 'weight')
WHERE = 'FaultInjectionHook.faults'
Named = List[Tuple[str, Any]]


@dataclass(frozen=True)
class Fault:
    """One planned fault.

    Attributes:
        iter: Iteration in which it strikes, from 1.
        site: One of ``SITES``.
        value: Value that the first element gets. Not for a fault with a type.
        where: Regex, searched in the names of modules (activation),
            parameters (grad, weight) or buffers (buffer); the first match in
            the model's order is struck. Not for input and loss.
        type: Name of a function in the registry ``FAULTS`` that changes the
            tensor instead; the other keys are its arguments.
    """

    iter: int
    site: str
    value: float = math.nan
    where: Optional[str] = None
    type: Optional[str] = None

    @classmethod
    def from_config(cls, config: object) -> 'Fault':
        """Read one fault of a config.

        Raises:
            GuardConfigError: For anything that cannot strike.
        """
        if not isinstance(config, Mapping):
            raise GuardConfigError(
                f'FaultInjectionHook: {config!r} must be a dict such as '
                "dict(iter=30, site='grad', value='nan')."
            )
        if config.get('type') is not None:
            check_place(config)
            return OwnFault.from_type(config)
        check_keys(config, [key.name for key in fields(Fault)], WHERE)
        check_place(config)
        try:
            value = float(config.get('value', 'nan'))
        except (TypeError, ValueError):
            raise GuardConfigError(
                f'FaultInjectionHook: fault {dict(config)!r}: value must be '
                "'nan', 'inf', '-inf' or a number."
            ) from None
        return Fault(
            config['iter'], config['site'], value, config.get('where')
        )

    @property
    def effect(self) -> str:
        """The change of the tensor, as the log says it."""
        return f'becomes {self.value}'

    def strike(self, tensor: Tensor) -> None:
        """Change a tensor in place."""
        # Index of the first element, for any shape and layout.
        tensor[(0,) * tensor.dim()] = self.value


@dataclass(frozen=True)
class OwnFault(Fault):
    """A fault that a registered function makes.

    Attributes:
        change: Returns the new content for a copy of the tensor.
    """

    change: Callable[[Tensor], object] = field(default=torch.clone, repr=False)

    @classmethod
    def from_type(cls, config: Mapping[str, Any]) -> 'OwnFault':
        """Read a fault whose ``type`` names a registered function.

        Raises:
            GuardConfigError: For an unknown type or argument.
        """
        name, where = config['type'], f'{WHERE}.type'
        FAULTS.import_from_location()
        function = get_registered(FAULTS, name, where)
        place = ('iter', 'site', 'where', 'type')
        options = {key: config[key] for key in config if key not in place}
        signature = inspect.signature(function)
        # The first parameter is the tensor.
        names = list(signature.parameters)[1:]
        kinds = {signature.parameters[key].kind for key in names}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            check_keys(options, names, f'{WHERE}: {name}')
        try:
            signature.bind(None, **options)
        except TypeError as error:
            raise GuardConfigError(f'{WHERE}: {name}: {error}.') from None
        return cls(
            config['iter'],
            config['site'],
            where=config.get('where'),
            type=name,
            change=partial(function, **options),
        )

    @property
    def effect(self) -> str:
        return f'is changed by {self.type}'

    def strike(self, tensor: Tensor) -> None:
        """Change a tensor in place.

        Raises:
            NanGuardError: If the function returns no tensor of this shape.
        """
        changed = self.change(tensor.detach().clone())
        shape = getattr(changed, 'shape', None)
        if not isinstance(changed, Tensor) or shape != tensor.shape:
            raise NanGuardError(
                f'FaultInjectionHook: the fault {self.type} returns '
                f'{type_and_shape(changed)}: it must return a tensor of shape '
                f'{tuple(tensor.shape)}, like the one that it is given.'
            )
        tensor.copy_(changed)


def type_and_shape(value: object) -> str:
    """Describe a value that is no fit tensor."""
    shape = getattr(value, 'shape', None)
    if shape is None:
        return repr(value)
    return f'a {type(value).__name__} of shape {tuple(shape)}'


def check_place(config: Mapping[str, Any]) -> None:
    """Refuse a fault without a proper iteration, site and regex.

    Raises:
        GuardConfigError: If one of them is missing or cannot work.
    """
    where = f'FaultInjectionHook: fault {dict(config)!r}'
    for key in ('iter', 'site'):
        if key not in config:
            raise GuardConfigError(f'{where} lacks {key!r}.')
    number, site = config['iter'], config['site']
    if not isinstance(number, int) or number < 1:
        raise GuardConfigError(
            f'{where}: iter must be an integer of at least 1; iterations '
            'count from 1, as in the log.'
        )
    if site not in SITES:
        raise GuardConfigError(
            f'{where}: site must be one of {", ".join(SITES)}.'
        )
    pattern = config.get('where')
    if pattern is not None and site in ('input', 'loss'):
        raise GuardConfigError(f'{where}: {site} takes no `where`.')
    try:
        re.compile(pattern or '')
    except re.error as error:
        raise GuardConfigError(
            f'{where}: `where` is no regex: {error}.'
        ) from None


def find_target(model: nn.Module, fault: Fault) -> Tuple[str, Any]:
    """Return the name and the object that a fault strikes.

    The object is a module (input, activation), a parameter (grad, weight), a
    module with the key of its buffer (buffer), or None (loss).

    Raises:
        GuardConfigError: If the model has nothing that fits.
    """
    if fault.site == 'loss':
        return 'the loss', None
    if fault.site == 'input':
        preprocessor = getattr(model, 'data_preprocessor', None)
        if not isinstance(preprocessor, nn.Module):
            raise GuardConfigError(
                f'FaultInjectionHook: {fault}: {type(model).__name__} has no '
                'data_preprocessor whose output could be struck; use '
                "site='activation'."
            )
        return 'the output of data_preprocessor', preprocessor
    candidates = list(_candidates(model, fault.site))
    for name, target in candidates:
        if re.search(fault.where or '', name):
            return f"'{name}'", target
    names = ', '.join(name for name, _ in candidates[:10])
    raise GuardConfigError(
        f'FaultInjectionHook: {fault} matches nothing. Names of this model '
        f'begin with: {names or "none"}.'
    )


def _candidates(model: nn.Module, site: str) -> Iterator[Tuple[str, Any]]:
    """Yield all names and objects at a site, in the model's order."""
    if site == 'activation':
        named: Named = list(model.named_modules())[1:]
    elif site == 'buffer':
        # A mask of -inf cannot become worse than it is.
        named = [
            (name, owned_by(model, name))
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and torch.isfinite(buffer).all()
        ]
    else:
        named = [
            (name, param)
            for name, param in model.named_parameters()
            if site == 'weight' or param.requires_grad
        ]
    for name, target in named:
        if not name.startswith('data_preprocessor'):
            yield name, target


def owned_by(model: nn.Module, name: str) -> Tuple[nn.Module, str]:
    """Return the module and the key of a buffer.

    The buffer itself will not do: forward may bind another tensor there.
    """
    owner, _, key = name.rpartition('.')
    return model.get_submodule(owner), key
