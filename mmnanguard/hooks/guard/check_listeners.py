"""Checks of the listener methods of a run's hooks.

A listener method is called at the first rejected update, perhaps after days.
These checks find at the start of training a method that would never be called
or whose call would fail.
"""

import difflib
import inspect
import re
from typing import Dict, Iterable, List

from mmengine.hooks import Hook

from mmnanguard.core import GuardConfigError

from .._shared.guard_listener import LISTENER_METHODS

__all__ = ['check_signatures', 'misspelt_methods']

# Similarity, by difflib's ratio, from which a name counts as misspelt. No hook
# of MMEngine or of this package has a method above it.
CUTOFF = 0.75
# Prefixes that other frameworks give to such methods.
PREFIX = re.compile('^(on|before|after)_?')


def misspelt_methods(hooks: Iterable[Hook]) -> List[str]:
    """Describe methods that resemble a listener method but have another name.

    ``Runner.call_hook`` skips a hook that lacks the method, so MMEngine does
    not notice a misspelt name.
    """
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
        # 'on_audit' and 'afterAudit' then differ little from 'after_audit'.
        usual_name = PREFIX.sub('after_', method.lower())
        near = difflib.get_close_matches(
            usual_name, list(LISTENER_METHODS), n=1, cutoff=CUTOFF
        )
        if near:
            similar[method] = near[0]
    return similar


def check_signatures(hooks: Iterable[Hook]) -> None:
    """Refuse listener methods whose first call would fail.

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
                # A method of an instance is bound, so None is the runner.
                signature.bind(None, **{keyword: None})
            except TypeError as error:
                raise GuardConfigError(
                    f'{type(hook).__name__}.{name}{signature} cannot be '
                    f'called ({error}): it must be '
                    f'{name}(self, runner, {keyword}).'
                ) from None
