"""The contract of a clip rule that a user wrote, checked before training."""

from typing import NoReturn

from ..checks import is_number
from ..errors import GuardConfigError
from .checks import CLIP_GRAD
from .clip_rule import ClipRule

__all__ = ['check_rule', 'check_rule_class']

# The types that torch.load reads with weights_only=True, besides containers.
PLAIN = (type(None), bool, int, float, str)


def check_rule_class(cls: type) -> None:
    """Refuse a class that is no ``ClipRule`` or no frozen dataclass.

    A class that replaces ``coefficient``, which checks the result of
    ``__call__``, is refused as well.

    Raises:
        GuardConfigError: If the class is refused.
    """
    name = cls.__name__
    if not issubclass(cls, ClipRule):
        raise GuardConfigError(
            f'{CLIP_GRAD}.type is {name}: a clip rule must inherit from '
            'mmnanguard.core.ClipRule.'
        )
    # A rule that changed in place would remember rejected updates. The
    # dataclasses module has no public way to ask for frozen.
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
    """Try all methods of a user's rule on a norm of 1.

    The rule itself stays as it is, because ``after`` returns a new rule.

    Raises:
        GuardConfigError: If the norm type, the next rule or the saved state
            is not allowed, or if the state is not restored.
        NanGuardError: If the coefficient is not allowed.
    """
    name = type(rule).__name__
    # The norm type may come from the config. Written so that NaN is refused.
    if not is_number(rule.norm_type) or not rule.norm_type > 0:
        refuse(
            f'{name}.norm_type is {rule.norm_type!r}: it must be above 0; '
            "'inf' is the largest absolute element"
        )
    rule.coefficient(1.0)
    # State often differs in kind before and after the first commit (None,
    # then a number), so the state after a commit is checked.
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
    # A resumed run begins with a fresh rule, not with ``later``.
    resumed = rule.with_state(saved).to_dict()
    if resumed != saved:
        refuse(
            f'{name}.with_state(saved) makes {resumed!r} of {saved!r}: it '
            'must restore what to_dict() returns'
        )
    later.coefficient(1.0)


def check_plain(value: object, where: str) -> None:
    """Refuse state that a checkpoint cannot hold safely.

    Raises:
        GuardConfigError: If the value, or an item in it, is of a type that is
            not Python's own.
    """
    # Subclasses are refused as well: numpy.float64 is a float, and a
    # checkpoint with it cannot be read with weights_only=True.
    if type(value) in PLAIN:
        return
    if type(value) is list or type(value) is tuple:
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


def refuse(problem: str) -> NoReturn:
    """Raise a ``GuardConfigError`` about the clip rule."""
    raise GuardConfigError(f'{CLIP_GRAD}: {problem}.')
