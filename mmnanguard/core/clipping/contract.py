"""The contract of a clip rule that a user wrote, checked before training."""

from typing import Any

from ..checks import is_number
from ..errors import GuardConfigError
from .checks import CLIP_GRAD
from .clip_rule import ClipRule

__all__ = ['check_rule', 'check_rule_class']

PLAIN = (type(None), bool, int, float, str)


def check_rule_class(cls: type) -> None:
    """Refuse a class that is no frozen dataclass of the right base.

    A class that replaces ``coefficient``, which checks the result of
    ``__call__``, is refused as well.

    Raises:
        GuardConfigError: If so.
    """
    name = cls.__name__
    if not issubclass(cls, ClipRule):
        raise GuardConfigError(
            f'{CLIP_GRAD}.type is {name}: a clip rule must inherit from '
            'mmnanguard.core.ClipRule.'
        )
    params = getattr(cls, '__dataclass_params__', None)
    if not getattr(params, 'frozen', False):
        raise GuardConfigError(
            f'{CLIP_GRAD}.type is {name}: a clip rule must be a frozen '
            f'dataclass. Write @dataclass(frozen=True) above class {name}; '
            '`after` then returns dataclasses.replace(self, ...).'
        )
    if cls.coefficient is not ClipRule.coefficient:
        raise GuardConfigError(
            f'{CLIP_GRAD}.type is {name}: its method `coefficient` would '
            'replace the check of each coefficient. Write `__call__(self, '
            'norm)` instead.'
        )


def check_rule(rule: ClipRule) -> None:
    """Try a user's rule on a norm of 1; a rule is a value, so it stays as is.

    Raises:
        GuardConfigError: If it cannot be asked, remembered, saved or resumed.
        NanGuardError: If its coefficient is not allowed.
    """
    name = type(rule).__name__
    if not is_number(rule.norm_type) or not rule.norm_type > 0:
        refuse(
            f'{name}.norm_type is {rule.norm_type!r}: it must be above 0; '
            "'inf' is the largest absolute element"
        )
    rule.coefficient(1.0)
    later = rule.after(1.0)
    if type(later) is not type(rule):
        refuse(
            f'{name}.after(norm) returns {later!r}: it must return a {name}, '
            'such as dataclasses.replace(self, ...), or self'
        )
    saved = later.to_dict()
    for key, value in saved.items():
        check_plain(value, f'{name}.to_dict() has {key!r}')
    if saved.get('type') != name:
        refuse(
            f"{name}.to_dict() has 'type' {saved.get('type')!r}: it must be "
            f'{name!r}, by which a checkpoint is told apart'
        )
    resumed = rule.with_state(saved).to_dict()
    if resumed != saved:
        refuse(
            f'{name}.with_state(saved) makes {resumed!r} of {saved!r}: it '
            'must restore what to_dict() returns'
        )
    later.coefficient(1.0)


def check_plain(value: Any, where: str) -> None:
    """Refuse state that a checkpoint cannot hold safely.

    Raises:
        GuardConfigError: If a part is not of Python's own types.
    """
    # Subclasses are refused as well: numpy.float64 is a float, and a
    # checkpoint with it cannot be read with weights_only=True.
    if type(value) in PLAIN:
        return
    if type(value) in (list, tuple):
        for item in value:
            check_plain(item, where)
    elif type(value) is dict:
        for key, item in value.items():
            check_plain(key, where)
            check_plain(item, where)
    else:
        refuse(
            f'{where} of type {type(value).__name__}: a checkpoint takes '
            'None, bool, int, float, str, and lists, tuples and dicts of '
            'them; convert it, as with float(...)'
        )


def refuse(story: str) -> None:
    raise GuardConfigError(f'{CLIP_GRAD}: {story}.')
