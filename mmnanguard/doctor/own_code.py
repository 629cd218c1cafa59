"""The look at code of the user's that may update past the guard.

The source of classes is read and not run. What it cannot show, the guard
finds while training runs, and says so in capitals.
"""

import ast
import inspect
import re
from textwrap import dedent
from typing import Iterator, List, Mapping

from mmnanguard._support.loss_checks import last_name

from .classes import NamedClass
from .finding import Finding, fine, warn

__all__ = ['look_at_own_code']

# Packages whose classes update through the wrapper.
KNOWN = ('mmengine', 'mmnanguard', 'torch', 'builtins')
OPTIMIZER = re.compile(r'(optim|opt|optimizer|scaler)s?(_\w+)?$')
# Methods in which a model or a loop updates.
LOOPS = ('train_step', 'run_iter')
COMM_HOOK = 'register_comm_hook'


def look_at_own_code(classes: Mapping[str, List[NamedClass]]) -> List[Finding]:
    """Return the findings on model, loop, runner and hooks of the user's.

    Args:
        classes: The classes of the config by role.
    """
    findings: List[Finding] = []
    for role in ('model', 'loop', 'runner', 'hook'):
        for named in classes.get(role, ()):
            if not isinstance(named.kind, type):
                continue
            findings += look_at_class(named)
    return findings


def look_at_class(named: NamedClass) -> Iterator[Finding]:
    """Yield the findings on a class and its bases."""
    steps: List[str] = []
    has_comm_hook = has_own_loop = False
    for base in named.kind.__mro__:
        if base.__module__.split('.')[0] in KNOWN:
            continue
        try:
            tree = ast.parse(dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            # The class was compiled, or written in a console.
            continue
        for node in ast.walk(tree):
            has_own_loop |= getattr(node, 'name', '') in LOOPS
            if isinstance(node, ast.Call):
                has_comm_hook |= last_name(node.func) == COMM_HOOK
                steps += own_steps(node)
    if steps:
        yield warn(
            f'{named.where}: {named.name} calls {steps[0]}, which may be '
            'past the guard.',
            'Let updates end in optim_wrapper.update_params(loss) or '
            'optim_wrapper.step(); an update past the guard is named in '
            'capitals when it happens.',
        )
    elif has_own_loop:
        yield fine(
            f'{named.where}: {named.name} has a loop of its own; updates that '
            'end in optim_wrapper.update_params() or step() are guarded.'
        )
    if has_comm_hook:
        yield warn(
            f'{named.where}: {named.name} registers a communication hook.',
            "PyTorch's own hooks are fine. What another one remembers is not "
            'put back if an update is rejected (docs/en/limits.md).',
        )


def own_steps(node: ast.Call) -> List[str]:
    """Return a call that steps an optimizer itself, as text."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != 'step':
        return []
    owner = node.func.value
    while isinstance(owner, ast.Subscript):
        owner = owner.value
    name = last_name(owner)
    if 'wrapper' in name.lower() or not OPTIMIZER.search(name.lower()):
        return []
    return [f'{name}.step()']
