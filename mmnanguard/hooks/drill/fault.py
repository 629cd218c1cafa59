"""Planned faults of a fire drill, and the tensors that they strike.

``Fault.from_config`` checks a config when the hook is built, because a fault
that never strikes would make a drill pass. ``find_target`` needs the model,
so the hook calls it when training begins.
"""

import inspect
import math
import re
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    Mapping,
    Optional,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn

from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.core.checks import check_keys
from mmnanguard.registry import FAULTS, get_registered

__all__ = ['Fault', 'OwnFault', 'find_target']

SITES = ('input', 'activation', 'loss', 'grad', 'buffer', 'weight')
WHERE = 'FaultInjectionHook.faults'
FaultConfig = Mapping[str, Any]
# A module (input, activation), a parameter (grad, weight), a module with the
# key of its buffer (buffer), or None (loss).
Target = Union[nn.Module, Tensor, Tuple[nn.Module, str], None]
Named = List[Tuple[str, Target]]


@dataclass(frozen=True)
class Fault:
    """One planned fault.

    Attributes:
        iter: Iteration in which it strikes, from 1.
        site: Kind of tensor that it strikes, an item of ``SITES``.
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
            GuardConfigError: For a config that is no fault, or a fault that
                cannot strike.
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
        # The command line has no nan: it comes as a string.
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
        """The change of the tensor, as the log reports it."""
        return f'becomes {self.value}'

    def strike(self, tensor: Tensor) -> None:
        """Change a tensor in place."""
        # Index of the first element for any shape. `view(-1)[0]` would fail
        # for a tensor that is not contiguous.
        tensor[(0,) * tensor.dim()] = self.value


@dataclass(frozen=True)
class OwnFault(Fault):
    """A fault that a registered function makes.

    Attributes:
        change: Function that returns the new content of a copy of the
            tensor.
    """

    # The default only satisfies `dataclass`: the fields before have defaults.
    change: Callable[[Tensor], object] = field(default=torch.clone, repr=False)

    @classmethod
    def from_type(cls, config: FaultConfig) -> 'OwnFault':
        """Read a fault whose ``type`` names a registered function.

        Raises:
            GuardConfigError: For an unknown type or argument.
        """
        name, where = config['type'], f'{WHERE}.type'
        # The error message lists the names, and a look-up imports the
        # functions only if the type is a string.
        FAULTS.import_from_location()
        function = get_registered(FAULTS, name, where)
        options = dict(config)
        for key in ('iter', 'site', 'where', 'type'):
            options.pop(key, None)
        signature = inspect.signature(function)
        # The first parameter is the tensor.
        names = list(signature.parameters)[1:]
        kinds = map(attrgetter('kind'), signature.parameters.values())
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            # Before `bind`, whose message suggests no similar key.
            check_keys(options, names, f'{WHERE}: {name}')
        # `bind` finds arguments that are missing.
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
        """The change of the tensor, as the log reports it."""
        return f'is changed by {self.type}'

    def strike(self, tensor: Tensor) -> None:
        """Change a tensor in place.

        Raises:
            NanGuardError: If the function returns no tensor of this shape.
        """
        # The function gets a copy: if it changes its argument in place and
        # then fails, the tensor stays as it is.
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
    """Describe a value that is no tensor, or a tensor of a wrong shape."""
    shape = getattr(value, 'shape', None)
    if shape is None:
        return repr(value)
    return f'a {type(value).__name__} of shape {tuple(shape)}'


def check_place(config: FaultConfig) -> None:
    """Refuse a fault without a proper iteration, site and regex.

    Raises:
        GuardConfigError: If the iteration or the site is missing, or any of
            the three is not allowed.
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


def find_target(model: nn.Module, fault: Fault) -> Tuple[str, Target]:
    """Return the name and the object that a fault strikes.

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
    # The first names show the naming scheme; a model may have thousands.
    names = ', '.join(name for name, _ in candidates[:10])
    raise GuardConfigError(
        f'FaultInjectionHook: {fault} matches nothing. Names of this model '
        f'begin with: {names or "none"}.'
    )


def _candidates(model: nn.Module, site: str) -> Iterator[Tuple[str, Target]]:
    """Yield all names and objects at a site, in the model's order."""
    named: Named = []
    if site == 'activation':
        # The first module is the model itself. Its output is the losses,
        # which have a site of their own.
        named.extend(list(model.named_modules())[1:])
    elif site == 'buffer':
        for name, buffer in model.named_buffers():
            # A mask of -inf cannot become worse than it is.
            if buffer.is_floating_point() and torch.isfinite(buffer).all():
                named.append((name, owner_and_key(model, name)))
    else:
        for name, param in model.named_parameters():
            # A frozen weight can go bad, but it never has a gradient.
            if site == 'weight' or param.requires_grad:
                named.append((name, param))
    for name, target in named:
        # The site 'input' strikes the preprocessor's output. Its buffers, mean
        # and std, are constants.
        if not name.startswith('data_preprocessor'):
            yield name, target


def owner_and_key(model: nn.Module, name: str) -> Tuple[nn.Module, str]:
    """Return the module that has a buffer, and the buffer's key in it."""
    # Not the buffer itself: forward may assign another tensor to the key.
    owner, _, key = name.rpartition('.')
    return model.get_submodule(owner), key
