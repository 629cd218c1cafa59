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

from .fields import UnreadableField

__all__ = ['Check', 'Problem', 'build_checks', 'find_problems']

Check = Callable[[Mapping[str, Any]], Optional[str]]


class Problem(NamedTuple):
    """What is wrong with a sample.

    Args:
        check: The check that says so.
        text: Key, value and what is allowed.
    """

    check: str
    text: str

    def __str__(self) -> str:
        return f'{self.text} ({self.check})'


def build_checks(
    configs: Sequence[Union[str, Mapping[str, Any]]], where: str
) -> List[Tuple[str, Check]]:
    """Checks by their names.

    Args:
        configs: A dict with a type and its arguments each, or the type alone.
        where: They stand, for a message.

    Raises:
        GuardConfigError: For an unknown type or key, or a value that is not
            allowed.
    """
    is_list = isinstance(configs, (list, tuple)) and bool(configs)
    check_value(is_list, where, configs, 'a list of checks, one at least')
    return [build_check(config, where) for config in configs]


def build_check(
    config: Union[str, Mapping[str, Any]], where: str
) -> Tuple[str, Check]:
    config = dict(type=config) if isinstance(config, str) else config
    is_config = isinstance(config, Mapping) and 'type' in config
    check_value(is_config, where, config, "a dict with a 'type', or its name")
    kind = config['type']
    if isinstance(kind, str):
        CHECKS.import_from_location()
        name = kind.replace('mmnanguard.', '', 1)
        check_keys([name], CHECKS.module_dict, where)
        kind = CHECKS.module_dict[name]
    else:
        name = kind.__name__
    options = {key: config[key] for key in config if key != 'type'}
    signature = inspect.signature(kind)
    is_class = inspect.isclass(kind)
    # A function's first argument is the sample.
    names = list(signature.parameters)[0 if is_class else 1 :]
    kinds = {signature.parameters[key].kind for key in names}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        check_keys(options, names, f'{where}: {name}')
    try:
        signature.bind(*(() if is_class else ({},)), **options)
    except TypeError as error:
        raise GuardConfigError(f'{where}: {name}: {error}.') from None
    return name, kind(**options) if is_class else partial(kind, **options)


def find_problems(
    sample: Mapping[str, Any], checks: Sequence[Tuple[str, Check]]
) -> List[Problem]:
    """What is wrong with a sample, a problem at most for each check.

    Raises:
        UnreadableField: If it has not the keys that checks look at, or a
            check of the user's fails.
        GuardConfigError: If a check returns something else than a text or
            None.
    """
    problems = []
    for name, check in checks:
        try:
            text = check(sample)
        except GuardConfigError:
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
