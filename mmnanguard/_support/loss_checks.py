"""A reader of functions that finds what depends on a loss being finite."""

import ast
import re
from typing import Dict, List, Optional, Pattern, Sequence, Set, Tuple

__all__ = [
    'GRADIENTS',
    'LOSSES',
    'Functions',
    'LossChecks',
    'functions_in',
    'last_name',
]

Functions = Dict[str, ast.FunctionDef]
# Names of functions that ask whether a value is finite, such as isfinite and
# has_nan.
TESTS = re.compile(
    r'\w*(is|has|any|all|check|contains)_?(non_?|neg|pos)?'
    r'((in)?finite|nan|inf)(_\w+)?',
    re.IGNORECASE,
)
# Words in the names of losses, and of what a hook that steps itself checks.
LOSSES = re.compile(r'loss|output|log_var|scalar', re.IGNORECASE)
GRADIENTS = re.compile(f'{LOSSES.pattern}|grad', re.IGNORECASE)
# Functions that end the run, or wait for somebody at the terminal.
EXITS = ('exit', '_exit', 'quit', 'abort', 'kill', 'set_trace', 'breakpoint')
# Attributes of runners and loops that end the run when they are set.
LIMITS = (
    'stop_training',
    'should_stop',
    '_max_epochs',
    '_max_iters',
    'max_epochs',
    'max_iters',
)


class LossChecks(ast.NodeVisitor):
    """A reader of what a function makes depend on finite values.

    Statements are read once, in their order. Calls of known functions are
    followed.

    Args:
        functions: The functions that the function may call, by name.
        words: Matches the names of the values, such as :data:`LOSSES`.
        callers: The names of functions that are being read already.
        depth: Above 0 in statements that run for some losses only.

    Attributes:
        ends_run: Whether a non-finite loss ends the run.
        leaves_out_steps: Whether an optimizer's step depends on it.
        is_verdict: Whether the function returns whether a loss is finite.
    """

    def __init__(
        self,
        functions: Functions,
        words: Pattern[str] = LOSSES,
        callers: Tuple[str, ...] = (),
        depth: int = 0,
    ) -> None:
        self.functions, self.words = functions, words
        self.callers = callers
        self.ends_run = False
        self.leaves_out_steps = False
        self.is_verdict = False
        # The names of values that come from a loss, and of those that say
        # whether it is finite.
        self.losses: Set[str] = set()
        self.verdicts: Set[str] = set()
        self.depth = depth

    def read(
        self, function: ast.FunctionDef, takes_loss: bool = False
    ) -> 'LossChecks':
        """Read a function, which may get a loss as an argument."""
        if takes_loss:
            arguments = function.args
            for argument in (*arguments.args, *arguments.kwonlyargs):
                self.losses.add(argument.arg)
            self.losses.discard('self')
        for statement in function.body:
            self.visit(statement)
        return self

    def visit_Assert(self, node: ast.Assert) -> None:
        """Note an assertion."""
        if self.depends(node.test):
            self.ends_run = True

    def visit_Raise(self, node: ast.Raise) -> None:
        """Note an error."""
        if self.depth:
            self.ends_run = True

    def visit_If(self, node: ast.If) -> None:
        """Read both branches, which may depend on a loss."""
        self.visit(node.test)
        is_check = self.depends(node.test)
        self.depth += is_check
        for statement in (*node.body, *node.orelse):
            self.visit(statement)
        # What follows an early return depends on the loss too.
        self.depth -= is_check and not leaves_early(node)

    def visit_For(self, node: ast.For) -> None:
        """Note where the loop's variables come from."""
        self.assign([node.target], node.iter)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Note where a value comes from."""
        self.visit(node.value)
        self.assign(node.targets, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Note where a value comes from, such as a count of bad losses."""
        self.visit(node.value)
        self.assign([node.target], node.value)

    def visit_Return(self, node: ast.Return) -> None:
        """Note a verdict that the function returns."""
        if node.value is not None:
            self.visit(node.value)
            # 'if isnan(loss): return True' returns a verdict as well.
            if self.depth or self.depends(node.value):
                self.is_verdict = True

    def visit_Call(self, node: ast.Call) -> None:
        """Follow a call; note an exit, or a step of the optimizer."""
        self.generic_visit(node)
        name = last_name(node.func)
        if self.depth and name in EXITS:
            self.ends_run = True
        if self.depth and name == 'step':
            self.leaves_out_steps = True
        called = self.called(node)
        if called is not None:
            self.ends_run |= called.ends_run
            self.leaves_out_steps |= called.leaves_out_steps

    def assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        """Note that names take the kind of a value."""
        is_verdict = bool(self.depth) or self.depends(value)
        comes_from_loss = self.has_loss(value)
        for target in targets:
            for name in stored_names(target):
                if is_verdict:
                    self.verdicts.add(name)
                if comes_from_loss:
                    self.losses.add(name)
                if self.depth and name in LIMITS:
                    self.ends_run = True

    def has_loss(self, node: ast.AST) -> bool:
        """Whether an expression holds a loss or a gradient."""
        for part in ast.walk(node):
            name = last_name(part)
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                name = part.value
            if name in self.losses or self.words.search(name):
                return True
        return False

    def depends(self, node: ast.AST) -> bool:
        """Whether an expression says whether a loss is finite."""
        for part in ast.walk(node):
            if last_name(part) in self.verdicts:
                return True
            if isinstance(part, ast.Call):
                called = self.called(part)
                if called is not None and called.is_verdict:
                    return True
                is_test = bool(TESTS.fullmatch(last_name(part.func)))
            else:
                # NaN is the only value that is not equal to itself.
                is_test = isinstance(part, ast.Compare) and (
                    ast.dump(part.left) == ast.dump(part.comparators[0])
                )
            if is_test and self.has_loss(part):
                return True
        return False

    def called(self, node: ast.Call) -> Optional['LossChecks']:
        """Return what a call of a known function does; None if unknown."""
        name = last_name(node.func)
        function = self.functions.get(name)
        if function is None or name in self.callers:
            return None
        callers = (*self.callers, name)
        checks = LossChecks(self.functions, self.words, callers, self.depth)
        arguments = [*node.args, *(item.value for item in node.keywords)]
        takes_loss = any(map(self.has_loss, arguments))
        return checks.read(function, takes_loss)


def functions_in(body: Sequence[ast.stmt]) -> Functions:
    """Return the functions among some statements, by name."""
    functions = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
    return functions


def last_name(node: ast.AST) -> str:
    """Return the name of a variable or an attribute; '' of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return ''


def stored_names(target: ast.expr) -> List[str]:
    """Return the names and attributes that an assignment's target sets."""
    names = []
    for node in ast.walk(target):
        is_stored = isinstance(getattr(node, 'ctx', None), ast.Store)
        # What is stored in a dict or a list changes that container.
        while is_stored and isinstance(node, ast.Subscript):
            node = node.value
        if is_stored and last_name(node):
            names.append(last_name(node))
    return names


def leaves_early(node: ast.If) -> bool:
    """Whether a branch ends the function or the pass of a loop."""
    branches = (node.body, node.orelse)
    return any(
        branch and isinstance(branch[-1], (ast.Return, ast.Continue))
        for branch in branches
    )
