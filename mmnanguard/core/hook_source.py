"""Recognition of hooks that judge a loss by themselves, from their source.

A hook that ends the run at a non-finite loss, such as mmdet's
``CheckInvalidLossHook``, also ends it on the update that the guard has just
rejected: the model computed that loss before the guard could act. Such hooks
have many names, so this module reads what their methods do.
"""

import ast
import inspect
import re
import sys
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Dict, List, Mapping, Pattern

from mmnanguard._support.loss_checks import (
    GRADIENTS,
    LOSSES,
    Functions,
    LossChecks,
    functions_in,
    last_name,
)

__all__ = [
    'ENDS_INSTEAD',
    'ENDS_RUN',
    'STOPPING_HOOKS',
    'HookSource',
    'ends_run',
]

# What such a hook does, and what does it in its place.
ENDS_RUN = (
    'ends the run at a loss that is not finite, also when the guard has '
    'skipped that update'
)
ENDS_INSTEAD = 'guard.max_consecutive_skips ends the run instead'

# Hooks of public projects that end the run. A config may name them although
# their source cannot be read.
STOPPING_HOOKS = (
    'CheckInvalidLossHook',
    'CheckIsfiniteHook',
    'StopLossNanTrainingHook',
    'EarlyStopOnNanHook',
)
# The stages in which a training loss is at hand. mmcv 1.x calls the stages
# without 'train' for training as well.
ITER_STAGES = (
    'before_train_iter',
    'after_train_iter',
    'before_iter',
    'after_iter',
    '_before_iter',
    '_after_iter',
)
STAGE = re.compile(r'_?(before|after)_')


@dataclass
class HookSource:
    """The source of a hook's methods, and of the functions beside it.

    Attributes:
        methods: The methods by name, inherited methods included.
        functions: The functions of the hook's modules, by name.
    """

    methods: Functions = field(default_factory=dict)
    functions: Functions = field(default_factory=dict)

    @classmethod
    def of_class(cls, kind: type) -> 'HookSource':
        """Return the source of a class, as far as it can be read."""
        source = cls()
        # Methods of a subclass replace those of its bases.
        for base in reversed(kind.__mro__):
            package = base.__module__.split('.')[0]
            if package in ('mmengine', 'mmnanguard', 'builtins'):
                continue
            try:
                text = dedent(inspect.getsource(base))
                module = inspect.getsource(sys.modules[base.__module__])
                body, beside = ast.parse(text).body, ast.parse(module).body
            except (OSError, TypeError, SyntaxError, KeyError):
                # The class was compiled, or written in a console.
                continue
            source.functions.update(functions_in(beside))
            for node in body:
                if isinstance(node, ast.ClassDef):
                    source.methods.update(functions_in(node.body))
        return source

    @classmethod
    def of_text(cls, text: str, name: str) -> 'HookSource':
        """Return the source of a class in the text of a module.

        Bases are followed within the module only.

        Raises:
            SyntaxError: If the text is no Python.
        """
        body = ast.parse(text).body
        classes: Dict[str, ast.ClassDef] = {}
        for node in body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
        source = cls(functions=functions_in(body))
        source._add_class(classes, name)
        return source

    def _add_class(
        self, classes: Mapping[str, ast.ClassDef], name: str
    ) -> None:
        """Add the methods of a class after those of its bases."""
        node = classes.get(name)
        if node is None:
            return
        # A class may have the name of its base, which another module has.
        rest = {key: item for key, item in classes.items() if key != name}
        for base in node.bases:
            self._add_class(rest, last_name(base))
        self.methods.update(functions_in(node.body))

    def ends_run(self) -> bool:
        """Whether the hook ends the run at a loss that is not finite."""
        return bool(self._ending_stages())

    def does_more(self) -> bool:
        """Whether the hook has stages that do not end the run."""
        stages = {name for name in self.methods if STAGE.match(name)}
        return bool(stages - {*self._ending_stages()})

    def leaves_out_steps(self) -> bool:
        """Whether the hook steps only if loss or gradients are finite."""
        checks = self._read(GRADIENTS)
        return any(check.leaves_out_steps for check in checks.values())

    def _ending_stages(self) -> List[str]:
        checks = self._read(LOSSES)
        return [name for name, check in checks.items() if check.ends_run]

    def _read(self, words: Pattern[str]) -> Dict[str, LossChecks]:
        """Read the stages of an iteration."""
        known = {**self.functions, **self.methods}
        checks = {}
        for name in ITER_STAGES:
            if name in self.methods:
                reader = LossChecks(known, words, (name,))
                checks[name] = reader.read(self.methods[name])
        return checks


def ends_run(kind: type) -> bool:
    """Whether a class of hooks ends the run at a loss that is not finite.

    The class is judged by what its methods do, and by its name.
    """
    names = {base.__name__ for base in kind.__mro__}
    return (
        not names.isdisjoint(STOPPING_HOOKS)
        or HookSource.of_class(kind).ends_run()
    )
