"""A look at the hooks of a run for listener methods that are never called."""

import difflib
import inspect
import re
from typing import Dict, Iterable, List

from mmengine.hooks import Hook

from mmnanguard.core import GuardConfigError

from .._shared.guard_listener import LISTENER_METHODS

__all__ = ['check_signatures', 'misspelt_methods']

# Below it a name is too far from a listener method to be a slip of the pen.
CUTOFF = 0.75
# Beginnings by which other frameworks name such methods.
PREFIX = re.compile('^(on|before|after)_?')


def misspelt_methods(hooks: Iterable[Hook]) -> List[str]:
    """Describe methods that look like a listener's but have another name."""
    known = {*dir(Hook), *LISTENER_METHODS}
    warnings = []
    for hook in hooks:
        name = type(hook).__name__
        for method, right_name in similar_methods(type(hook), known).items():
            warnings.append(
                f'{name}.{method} is never called: did you mean {right_name}'
                f'(self, runner, {LISTENER_METHODS[right_name]})?'
            )
    return warnings


def similar_methods(cls: type, known: Iterable[str]) -> Dict[str, str]:
    """Map public methods that are not known to the nearest listener method."""
    similar = {}
    for method in sorted(set(dir(cls)) - set(known)):
        if method.startswith('_') or not callable(getattr(cls, method)):
            continue
        usual_name = PREFIX.sub('after_', method.lower())
        near = difflib.get_close_matches(
            usual_name, list(LISTENER_METHODS), n=1, cutoff=CUTOFF
        )
        if near:
            similar[method] = near[0]
    return similar


def check_signatures(hooks: Iterable[Hook]) -> None:
    """Refuse listener methods that their first call would fail in.

    Raises:
        GuardConfigError: If a method does not take the runner and the keyword
            that it is called with.
    """
    for hook in hooks:
        for name, keyword in LISTENER_METHODS.items():
            method = getattr(hook, name, None)
            if method is None:
                continue
            signature = inspect.signature(method)
            try:
                signature.bind(None, **{keyword: None})
            except TypeError as error:
                raise GuardConfigError(
                    f'{type(hook).__name__}.{name}{signature} cannot be '
                    f'called ({error}): it must be '
                    f'{name}(self, runner, {keyword}).'
                ) from None
