"""Checks that a config names, and the problems that they find."""

import inspect
from functools import partial
from typing import (
    Any,
    Callable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys, check_value
from mmnanguard.registry import CHECKS

from .fields import Sample, UnreadableField

__all__ = ['Check', 'CheckConfig', 'Problem', 'build_checks', 'find_problems']

# A check returns a text that says what is wrong with a sample, or None.
Check = Callable[[Sample], Optional[str]]
# A check in a config: a dict with its type and its arguments, or the type.
CheckConfig = Union[str, Mapping[str, object]]


class Problem(NamedTuple):
    """A problem of a sample.

    Args:
        check: The name of the check that reports it.
        text: The key, the value and the rule.
    """

    check: str
    text: str

    def __str__(self) -> str:
        return f'{self.text} ({self.check})'


def build_checks(
    configs: Sequence[CheckConfig], where: str
) -> List[Tuple[str, Check]]:
    """Build checks from their configs; return each with its name.

    Args:
        configs: For each check a dict with its type and its arguments, or
            the type alone.
        where: The option that holds the configs, for messages.

    Raises:
        GuardConfigError: For an unknown type or key, or a value that is not
            allowed.
    """
    is_list = isinstance(configs, (list, tuple)) and bool(configs)
    check_value(is_list, where, configs, 'a list of checks, one at least')
    return [build_check(config, where) for config in configs]


def build_check(config: CheckConfig, where: str) -> Tuple[str, Check]:
    """Build a check from its config, as :func:`build_checks` does."""
    if isinstance(config, str):
        config = dict(type=config)
    is_config = isinstance(config, Mapping) and 'type' in config
    check_value(is_config, where, config, "a dict with a 'type', or its name")
    kind: Any = config['type']
    if isinstance(kind, str):
        # MMEngine fills a registry at the first build(), which is not used
        # here: its error would not name the option and the known checks.
        CHECKS.import_from_location()
        name = kind.replace('mmnanguard.', '', 1)
        check_keys([name], CHECKS.module_dict, where)
        kind = CHECKS.module_dict[name]
    else:
        name = kind.__name__
    options = dict(config)
    del options['type']
    signature = inspect.signature(kind)
    is_class = inspect.isclass(kind)
    # A function's first argument is the sample; the config has the others.
    names = list(signature.parameters)
    sample_args: Tuple[Sample, ...] = ()
    if not is_class:
        names = names[1:]
        sample_args = ({},)
    # A function with **kwargs takes any key.
    kinds = {signature.parameters[key].kind for key in names}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        check_keys(options, names, f'{where}: {name}')
    try:
        # Checked before training: a missing argument would otherwise be an
        # error of the first sample, in a worker process.
        signature.bind(*sample_args, **options)
    except TypeError as error:
        raise GuardConfigError(f'{where}: {name}: {error}.') from None
    if is_class:
        return name, kind(**options)
    return name, partial(kind, **options)


def find_problems(
    sample: Sample, checks: Sequence[Tuple[str, Check]]
) -> List[Problem]:
    """Return the problems of a sample, at most one for each check.

    Raises:
        UnreadableField: If the sample lacks the keys that a check needs, or
            a check of the user raises.
        GuardConfigError: If a check returns neither a text nor None.
    """
    problems = []
    for name, check in checks:
        try:
            text = check(sample)
        except GuardConfigError:
            # This package's own checks explain a missing key better.
            raise
        except Exception as error:  # a user's check: whatever it raises
            raise UnreadableField(
                f'the check {name} fails: {type(error).__name__}: {error}.'
            ) from error
        allowed = 'None if all is well, or else a text that says what is wrong'
        is_right = text is None or isinstance(text, str)
        check_value(is_right, f'what the check {name} returns', text, allowed)
        if text is not None:
            problems.append(Problem(name, text))
    return problems
