"""A config as its author wrote it."""

import ast
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from mmnanguard.core import GuardConfigError

from .comments import place_comments
from .dict_source import edit_dict, entries_of
from .render import Kept, Piece, render

__all__ = ['Source']


class Source:
    """The statements of a file, and what is to become of them.

    Args:
        text: Of the file.
        where: Its name, for messages.

    Attributes:
        assigned: The value of each name that is set once, by a statement of
            its own at the top level.
        tangled: Lines of each name that is set in any other way.

    Raises:
        GuardConfigError: If it is no Python.
    """

    def __init__(self, text: str, where: str) -> None:
        try:
            wrapper = MetadataWrapper(cst.parse_module(text))
        except cst.ParserSyntaxError as error:
            raise GuardConfigError(
                f'{where} is no Python: line {error.raw_line}, '
                f'{error.message}.'
            ) from error
        self.module = wrapper.module
        self.positions = wrapper.resolve(PositionProvider)
        self.text = text
        self.lines = text.split('\n')
        self.statements: List[Any] = list(self.module.body)
        self.place: Dict[str, int] = {}
        self.assigned: Dict[str, cst.BaseExpression] = {}
        self.tangled: Dict[str, List[int]] = {}
        for index, statement in enumerate(self.statements):
            name = target_of(statement)
            stored = [name] if name else stored_in(statement)
            for each in stored:
                if name and each not in [*self.assigned, *self.tangled]:
                    self.place[name] = index
                    self.assigned[name] = statement.body[0].value
                    continue
                lines = self.tangled.setdefault(each, [])
                if self.assigned.pop(each, None) is not None:
                    lines.append(self.line_of(self.place.pop(each)))
                lines.append(self.line_of(index))
        self.new: Dict[int, List[str]] = {}  # what a statement becomes
        self.stays: Set[int] = set()  # beside what it becomes
        self.heir: Dict[int, int] = {}  # which one goes on for another
        self.last: List[str] = []  # and what comes after all of them

    def line_of(self, index: int) -> int:
        return self.positions[self.statements[index]].start.line

    def line(self, *path: str) -> Optional[int]:
        """Where a value stands; None if not in this file."""
        node = self.node(path)
        if node is not None:
            return self.positions[node].start.line
        if path[0] in self.tangled:
            return self.tangled[path[0]][-1]
        return self.line(*path[:-1]) if len(path) > 1 else None

    def node(self, path: Sequence[str]) -> Optional[cst.BaseExpression]:
        found: Any = self.assigned.get(path[0])
        for key in path[1:]:
            found = (entries_of(found) or {}).get(key)
        return found

    def users(self, name: str, gone: Iterable[str]) -> List[int]:
        """Lines of statements that name it and that will stay."""
        dropped = {self.place[each] for each in [name, *gone]}
        return [
            self.line_of(index)
            for index, statement in enumerate(self.statements)
            if index not in dropped and name in names_in(statement)
        ]

    def piece(self, kept: Kept, gone: Iterable[str]) -> Optional[Piece]:
        """Source that can be moved; None if there is none.

        Args:
            kept: Where it stands.
            gone: Names that will not be there any more.
        """
        node = self.node(kept.path)
        if node is None or names_in(node) & set(gone):
            return None
        if isinstance(kept.value, dict):
            named = node.value if isinstance(node, cst.Name) else ''
            entries = entries_of(self.assigned.get(named, node))
            if entries is None or ({*entries} ^ {*kept.value}) - {'_delete_'}:
                return None
            if named and {*entries} & {*kept.without}:
                return None
        start = self.positions[node].start
        line = self.lines[start.line - 1]
        if isinstance(kept.value, dict) and kept.without and not named:
            node = edit_dict(node, dict.fromkeys(kept.without))
        return Piece(
            text=self.module.code_for_node(node),
            indent=len(line) - len(line.lstrip()),
            column=start.column,
        )

    def defined_after(self, index: int) -> List[str]:
        """Names that a statement in this place cannot use."""
        line = self.line_of(index)
        late = [
            name for name, lines in self.tangled.items() if lines[-1] > line
        ]
        return late + [name for name, at in self.place.items() if at > index]

    def render(self, name: str, value: Any, gone: Iterable[str]) -> str:
        text = render(
            value, lambda kept: self.piece(kept, gone), column=len(name) + 3
        )
        return f'{name} = {text}'

    def edited(self, name: str, changes: Mapping[str, Any]) -> str:
        """An assignment with entries of its dict set, or, if None, removed."""
        node = self.assigned[name]
        if changes:
            node = edit_dict(node, changes)
        return f'{name} = {self.module.code_for_node(node)}'

    def code(self) -> str:
        """The new file. No comment is lost."""
        body: List[Any] = []
        waiting: List[Any] = []  # comments of what became nothing
        gone = {k for k, v in self.new.items() if not v} - self.stays
        above, moved = place_comments(
            self.statements, self.new, self.stays, self.heir
        )
        for index, old in enumerate(self.statements):
            lines = [*above[index], *moved.get(index, [])]
            if index in gone:
                waiting += [line for line in lines if line.comment]
                continue
            if waiting and (not lines or lines[0].comment):
                waiting.append(cst.EmptyLine(indent=False))
            parts = [cst.parse_statement(t) for t in self.new.get(index, [])]
            if not parts or index in self.stays:
                parts.insert(0, old)
            else:  # a comment at its end stays there
                parts[-1] = parts[-1].with_changes(
                    trailing_whitespace=old.trailing_whitespace
                )
            body.append(
                parts[0].with_changes(leading_lines=[*waiting, *lines])
            )
            body += parts[1:]
            waiting = []
        body += [cst.parse_statement(text) for text in self.last]
        footer = [*waiting, *self.module.footer]
        return self.module.with_changes(body=body, footer=footer).code


def target_of(statement: Any) -> str:
    """The name that a statement sets and does nothing else."""
    if (
        isinstance(statement, cst.SimpleStatementLine)
        and len(statement.body) == 1
        and isinstance(statement.body[0], cst.Assign)
        and len(statement.body[0].targets) == 1
        and isinstance(statement.body[0].targets[0].target, cst.Name)
    ):
        return statement.body[0].targets[0].target.value
    return ''


def stored_in(statement: Any) -> List[str]:
    """Names that a statement sets or changes, at whatever depth."""
    tree = ast.parse(cst.Module(body=[statement]).code)
    found = []
    for node in ast.walk(tree):
        while isinstance(node, (ast.Subscript, ast.Attribute)):
            is_stored = not isinstance(node.ctx, ast.Load)
            node = node.value
            if is_stored and isinstance(node, ast.Name):
                found.append(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value  # optimizer.update(...)
            if isinstance(owner, ast.Name):
                found.append(owner.id)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.append(node.id)
    return sorted(set(found))


def names_in(node: Any) -> set:
    """Names that are read, keywords and attributes are not."""
    if isinstance(node, cst.BaseExpression):
        node = cst.SimpleStatementLine([cst.Expr(node)])
    tree = ast.parse(cst.Module(body=[node]).code)
    return {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
