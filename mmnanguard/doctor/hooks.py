"""The look at the hooks: those of the guard, and those that clash with it."""

from typing import Any, List, Mapping

from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook

from mmnanguard.core.hook_source import ENDS_INSTEAD, ENDS_RUN, ends_run
from mmnanguard.hooks import NanGuardHook
from mmnanguard.hooks._shared.guard_listener import LISTENER_METHODS
from mmnanguard.hooks.guard.check_listeners import similar_methods
from mmnanguard.hooks.guard.start_warnings import LEFTOVERS
from mmnanguard.optim.apply_guard import load_overlay

from .classes import NamedClass, bare, error_text
from .finding import Finding, fail, fine, off, warn

__all__ = ['look_at_clashes', 'look_at_guard_hooks', 'look_at_leftovers']

PACKAGE = 'mmnanguard.'


def look_at_guard_hooks(hooks: List[NamedClass]) -> List[Finding]:
    """Return which hooks of the guard are on, and how to switch on the rest.

    Args:
        hooks: The classes of the config's hooks.
    """
    present: List[str] = []
    findings: List[Finding] = []
    for named in hooks:
        if not is_own(named):
            continue
        reason = why_not_built(named)
        if reason:
            findings.append(fail(f'{named.where}: {reason}'))
        else:
            present.append(named.name)
    on = ', '.join(present) or 'none'
    findings.insert(0, fine(f'on: {on}'))
    kinds = [named.kind for named in hooks if isinstance(named.kind, type)]
    if not any(issubclass(kind, NanGuardHook) for kind in kinds):
        findings.append(
            warn(
                'NanGuardHook is not on: rejected updates are undone, but '
                'nothing is logged, and no average is kept from them.',
                'Add to the config or to --cfg-options:',
                'default_hooks.nan_guard.type=mmnanguard.NanGuardHook',
            )
        )
    missing, settings = [], []
    for key, hook in load_overlay('full').default_hooks.items():
        name = bare(hook['type'])
        if name in present or name == NanGuardHook.__name__:
            continue
        missing.append(name)
        for argument, value in hook.items():
            settings.append(f'default_hooks.{key}.{argument}={value}')
    if missing:
        text = (
            f'{", ".join(missing)}. --guard full has all; one by one, with '
            '--cfg-options:'
        )
        findings.append(off(text, '\n'.join(settings)))
    return findings


def look_at_clashes(hooks: List[NamedClass]) -> List[Finding]:
    """Return the findings on hooks that do not go together with the guard.

    Args:
        hooks: The classes of the config's hooks.
    """
    findings = []
    for named in hooks:
        if not isinstance(named.kind, type) or is_own(named):
            continue
        if ends_run(named.kind):
            findings.append(
                fail(
                    f'{named.where}: {named.name} {ENDS_RUN}.',
                    f'Remove the hook (--guard does so); {ENDS_INSTEAD}.',
                )
            )
        known = {*dir(Hook), *LISTENER_METHODS}
        for method, right in similar_methods(named.kind, known).items():
            findings.append(
                warn(
                    f'{named.where}: {named.name}.{method} is never called.',
                    f'Did you mean {right}(self, runner, '
                    f'{LISTENER_METHODS[right]})?',
                )
            )
        if is_known_average(named.kind):
            findings.append(
                fine(
                    f'{named.where}: {named.name} leaves out rejected updates'
                )
            )
        elif 'ema' in words_of(named.name):
            findings.append(
                warn(
                    f'{named.where}: {named.name} may average weights also '
                    'after a rejected update.',
                    "Inherit from MMEngine's EMAHook (docs/en/limits.md).",
                )
            )
    return findings


def look_at_leftovers(cfg: Config) -> List[Finding]:
    """Return a finding on each 1.x key that MMEngine ignores."""
    findings = []
    for key, setting in LEFTOVERS.items():
        if cfg.get(key) is not None:
            findings.append(
                warn(
                    f'The config has `{key}`, a 1.x key that MMEngine '
                    'ignores.',
                    'In 2.x write:',
                    setting,
                )
            )
    return findings


def is_own(named: NamedClass) -> bool:
    """Whether a hook is of this package."""
    module = getattr(named.kind, '__module__', '')
    return str(module).startswith(PACKAGE)


def is_known_average(kind: type) -> bool:
    """Whether the guard knows the averages of a hook."""
    names = [base.__name__ for base in kind.__mro__]
    return issubclass(kind, EMAHook) or 'MeanTeacherHook' in names


def words_of(name: str) -> List[str]:
    """Return the words of a class name such as ExpEMAHook, in lower case."""
    letters = ''
    for before, letter, after in zip(' ' + name, name, name[1:] + ' '):
        begins = letter.isupper() and (before.islower() or after.islower())
        letters += f' {letter}' if begins else letter
    return letters.lower().split()


def why_not_built(named: NamedClass) -> str:
    """Return why a hook cannot be built; '' if it can."""
    keys: Mapping[str, Any] = named.config
    arguments = {
        key: value
        for key, value in keys.items()
        if key not in ('type', '_scope_', 'priority')
    }
    try:
        named.kind(**arguments)
    except Exception as error:  # wrong arguments
        return error_text(error)
    return ''
