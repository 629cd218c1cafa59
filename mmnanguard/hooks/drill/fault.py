import math
import re
from dataclasses import dataclass, fields
from typing import Any, Iterator, Mapping, Optional, Tuple

import torch
from torch import nn

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys

__all__ = ['Fault', 'find_target']

SITES = ('input', 'activation', 'loss', 'grad', 'buffer', 'weight')


@dataclass(frozen=True)
class Fault:
    """One planned fault.

    Attributes:
        iter: Iteration in which it strikes, from 1.
        site: One of ``SITES``.
        value: What one element becomes.
        where: Regex, searched in the names of modules (activation),
            parameters (grad, weight) or buffers (buffer); the first match in
            the model's order is struck. Not for input and loss.
    """

    iter: int
    site: str
    value: float = math.nan
    where: Optional[str] = None

    @classmethod
    def from_config(cls, config: object) -> 'Fault':
        """Raises GuardConfigError for anything that cannot strike."""
        if not isinstance(config, Mapping):
            raise GuardConfigError(
                f'FaultInjectionHook: {config!r} must be a dict such as '
                "dict(iter=30, site='grad', value='nan')."
            )
        check_keys(
            config,
            (field.name for field in fields(cls)),
            'FaultInjectionHook.faults',
        )
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
        try:
            value = float(config.get('value', 'nan'))
        except (TypeError, ValueError):
            raise GuardConfigError(
                f"{where}: value must be 'nan', 'inf', '-inf' or a number."
            ) from None
        pattern = config.get('where')
        if pattern is not None and site in ('input', 'loss'):
            raise GuardConfigError(f'{where}: {site} takes no `where`.')
        try:
            re.compile(pattern or '')
        except re.error as error:
            raise GuardConfigError(
                f'{where}: `where` is no regex: {error}.'
            ) from None
        return cls(number, site, value, pattern)


def find_target(model: nn.Module, fault: Fault) -> Tuple[str, Any]:
    """Name and object that a fault strikes."""
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
    """What a fault at this site can strike, in the model's order."""
    if site == 'activation':
        found = list(model.named_modules())[1:]
    elif site == 'buffer':
        # A mask of -inf has nothing that could go bad.
        found = [
            (name, owned_by(model, name))
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and torch.isfinite(buffer).all()
        ]
    else:
        found = [
            (name, param)
            for name, param in model.named_parameters()
            if site == 'weight' or param.requires_grad
        ]
    for name, target in found:
        if not name.startswith('data_preprocessor'):
            yield name, target


def owned_by(model: nn.Module, name: str) -> Tuple[nn.Module, str]:
    """A buffer's module and key; forward may bind another tensor there."""
    owner, _, key = name.rpartition('.')
    return model.get_submodule(owner), key
