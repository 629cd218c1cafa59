"""The source of a config, as its author wrote it."""

import ast
from typing import (
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from mmnanguard.core import GuardConfigError

from .comments import Statement, place_comments
from .config_value import ConfigValue
from .dict_source import edit_dict, entries_of
from .model_keys import model_keys_in
from .render import Kept, Piece, render

__all__ = ['Source', 'names_in', 'stored_in']


class Source:
    """The statements of a file, and their replacements.

    Args:
        text: The text of the file.
        where: The name of the file, for messages.

    Attributes:
        assigned: The value of each name that is set once, by a separate
            statement at the top level.
        place: The index of that statement, by name.
        tangled: The lines of each name that is set more than once, in another
            kind of statement, or changed in place.
        apart: The index and value of each statement with a key of the model,
            which has the name of a key of MMEngine; they are not in
            ``assigned``.
        new: The source that replaces a statement, by its index.
        stays: Indices of statements that stay beside their replacement.
        heir: The index of the statement that takes over the comments of a
            removed statement, by the index of the removed statement.
        last: New statements at the end of the file.
        is_plain: Whether no source is moved, so that values are written.

    Raises:
        GuardConfigError: If the text is no Python.
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
        self.statements: List[Statement] = list(self.module.body)
        self.place: Dict[str, int] = {}
        self.assigned: Dict[str, cst.BaseExpression] = {}
        self.tangled: Dict[str, List[int]] = {}
        for index, statement in enumerate(self.statements):
            self._read_statement(index, statement)
        self.apart: Dict[str, Tuple[int, cst.BaseExpression]] = {}
        for name in model_keys_in(self.assigned):
            self.apart[name] = self.place.pop(name), self.assigned.pop(name)
        self.new: Dict[int, List[str]] = {}
        self.stays: Set[int] = set()
        self.heir: Dict[int, int] = {}
        self.last: List[str] = []
        self.is_plain = False

    def _read_statement(self, index: int, statement: Statement) -> None:
        assignment = simple_assignment(statement)
        if assignment is not None:
            name, value = assignment
            if name not in self.assigned and name not in self.tangled:
                self.place[name] = index
                self.assigned[name] = value
                return
            stored = [name]
        else:
            stored = stored_in(statement)
        for name in stored:
            lines = self.tangled.setdefault(name, [])
            # A second statement makes a simple assignment tangled: the line of
            # the first is listed too.
            if self.assigned.pop(name, None) is not None:
                lines.append(self.line_of(self.place.pop(name)))
            lines.append(self.line_of(index))

    def line_of(self, index: int) -> int:
        """Return the line of a statement, from 1."""
        return self.positions[self.statements[index]].start.line

    def line(self, *path: str) -> Optional[int]:
        """Return the line of the value at a path, from 1.

        A value that is not written in this file has the line of the dict
        that would hold it; the result is None if that dict is not in this
        file either.
        """
        node = self.node(path)
        if node is not None:
            return self.positions[node].start.line
        if path[0] in self.tangled:
            # The last change decides on the value.
            return self.tangled[path[0]][-1]
        if len(path) == 1:
            return None
        return self.line(*path[:-1])

    def node(self, path: Sequence[str]) -> Optional[cst.BaseExpression]:
        """Return the expression at a path; None if it is not in this file."""
        node = self.assigned.get(path[0])
        for key in path[1:]:
            node = (entries_of(node) or {}).get(key)
        return node

    def entries(
        self, node: Optional[cst.BaseExpression]
    ) -> Optional[Dict[str, cst.BaseExpression]]:
        """Return a dict's values by key, also if the dict is given by name.

        None if the node is no dict, or is computed.
        """
        if isinstance(node, cst.Name):
            node = self.assigned.get(node.value)
        return entries_of(node)

    def users(self, name: str, gone: Iterable[str]) -> List[int]:
        """Return the lines of statements that name a key and will stay."""
        # Removed statements do not count: a key of 1.x often reads another key
        # of 1.x, and both are removed together.
        dropped = {self.place[key] for key in [name, *gone]}
        lines = []
        for index, statement in enumerate(self.statements):
            if index not in dropped and name in names_in(statement):
                lines.append(self.line_of(index))
        return lines

    def is_read(self, name: str) -> bool:
        """Whether a statement reads a name that it does not set or change."""
        for statement in self.statements:
            if name in names_in(statement) and name not in stored_in(
                statement
            ):
                return True
        return False

    def readers(self, name: str, index: int) -> List[int]:
        """Return the indices of statements that name a variable.

        Args:
            name: The name of the variable.
            index: The statement that sets it, which is left out.
        """
        readers = []
        for at, statement in enumerate(self.statements):
            if at != index and name in names_in(statement):
                readers.append(at)
        return readers

    def imported_names(self) -> Dict[str, str]:
        """Return the original names of what is imported as another name."""
        names = {}
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    names[alias.asname or alias.name] = alias.name
        return names

    def moved(
        self, node: cst.BaseExpression, indent: int, start: str
    ) -> cst.BaseExpression:
        """Return an expression, indented for another place.

        Args:
            node: An expression of this file.
            indent: The indentation of the line that it will stand on.
            start: The text before it on that line.
        """
        position = self.positions[node].start
        line = self.lines[position.line - 1]
        piece = Piece(
            text=self.module.code_for_node(node),
            indent=len(line) - len(line.lstrip()),
            column=position.column,
        )
        return cst.parse_expression(piece.at(indent, indent + len(start)))

    def piece(self, kept: Kept, gone: Iterable[str]) -> Optional[Piece]:
        """Return the source of a kept value; None if it cannot be moved.

        Args:
            kept: The value.
            gone: The names that cannot be used at the value's new place.
        """
        node = None if self.is_plain else self.node(kept.path)
        # At the new place such a name is undefined or may hold another value.
        if node is None or names_in(node) & set(gone):
            return None
        named = isinstance(node, cst.Name)
        if isinstance(kept.value, dict):
            entries = self.entries(node)
            # A dict that is given by name, as in 'runner = my_runner', or is
            # computed, can be moved as a whole, but not without some keys.
            if (named or entries is None) and {*kept.value} & {*kept.without}:
                return None
            # The source lacks the entries that the value inherits.
            if not kept.is_said and (
                entries is None or ({*entries} ^ {*kept.value}) - {'_delete_'}
            ):
                return None
        start = self.positions[node].start
        line = self.lines[start.line - 1]
        if (
            isinstance(kept.value, dict)
            and kept.without
            and not named
            and self.entries(node) is not None
        ):
            node = edit_dict(node, dict.fromkeys(kept.without))
        return Piece(
            text=self.module.code_for_node(node),
            indent=len(line) - len(line.lstrip()),
            column=start.column,
        )

    def defined_after(self, index: int) -> List[str]:
        """Return the names that a statement at an index cannot use."""
        line = self.line_of(index)
        late = []
        for name, lines in self.tangled.items():
            # Before its last change a name may hold another value.
            if lines[-1] > line:
                late.append(name)
        for name, place in self.place.items():
            if place > index:
                late.append(name)
        return late

    def render(
        self, name: str, value: ConfigValue, gone: Iterable[str]
    ) -> str:
        """Return the source of an assignment, with kept parts moved into it.

        Args:
            name: The name to assign to.
            value: A plain value, or one that contains :class:`Kept`.
            gone: The names that cannot be used where the assignment stands.
        """
        text = render(
            value, lambda kept: self.piece(kept, gone), column=len(name) + 3
        )
        return f'{name} = {text}'

    def edited(self, name: str, changes: Mapping[str, ConfigValue]) -> str:
        """Return an assignment with entries of its dict changed.

        Args:
            name: The name that is assigned.
            changes: New values by key; None removes the entry.
        """
        node = self.assigned[name]
        if changes:
            node = edit_dict(node, changes)
        return f'{name} = {self.module.code_for_node(node)}'

    def code(self) -> str:
        """Return the text of the new file, with all comments."""
        body: List[Statement] = []
        # Comments of removed statements. They go above the next statement that
        # stays.
        waiting: List[cst.EmptyLine] = []
        gone = {k for k, v in self.new.items() if not v} - self.stays
        above, moved = place_comments(
            self.statements, self.new, self.stays, self.heir
        )
        for index, old in enumerate(self.statements):
            lines = [*above[index], *moved.get(index, [])]
            if index in gone:
                waiting += [line for line in lines if line.comment]
                continue
            # An empty line keeps foreign comments apart from the next
            # statement, to whose comments they would seem to belong.
            if waiting and (not lines or lines[0].comment):
                waiting.append(cst.EmptyLine(indent=False))
            parts = list(map(cst.parse_statement, self.new.get(index, [])))
            if not parts or index in self.stays:
                parts.insert(0, old)
            elif isinstance(old, cst.SimpleStatementLine):
                # The comment at the end of the old line stays there.
                parts[-1] = parts[-1].with_changes(
                    trailing_whitespace=old.trailing_whitespace
                )
            body.append(
                parts[0].with_changes(leading_lines=[*waiting, *lines])
            )
            body += parts[1:]
            waiting = []
        body.extend(map(cst.parse_statement, self.last))
        footer = [*waiting, *self.module.footer]
        return self.module.with_changes(body=body, footer=footer).code


def simple_assignment(
    statement: Statement,
) -> Optional[Tuple[str, cst.BaseExpression]]:
    """Return the name and value of ``name = value``; None if there is none."""
    if (
        isinstance(statement, cst.SimpleStatementLine)
        and len(statement.body) == 1
        and isinstance(statement.body[0], cst.Assign)
        and len(statement.body[0].targets) == 1
        and isinstance(statement.body[0].targets[0].target, cst.Name)
    ):
        assign = statement.body[0]
        return statement.body[0].targets[0].target.value, assign.value
    return None


def stored_in(statement: Statement) -> List[str]:
    """Return the names that a statement sets or changes, at any depth."""
    # ast and not libcst: its nodes know whether a name is stored (ctx).
    tree = ast.parse(cst.Module(body=[statement]).code)
    names = set()
    for node in ast.walk(tree):
        # optimizer['lr'] = 1 and model.x = 1 change optimizer and model.
        while isinstance(node, (ast.Subscript, ast.Attribute)):
            is_stored = not isinstance(node.ctx, ast.Load)
            node = node.value
            if is_stored and isinstance(node, ast.Name):
                names.add(node.id)
        # A method may change what it is called on: optimizer.update(...),
        # lr_config['step'].append(...).
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            while isinstance(owner, (ast.Subscript, ast.Attribute)):
                owner = owner.value
            if isinstance(owner, ast.Name):
                names.add(owner.id)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return sorted(names)


def names_in(node: Union[Statement, cst.BaseExpression]) -> Set[str]:
    """Return the names in a node; keywords and attributes do not count."""
    # A module holds statements only, so an expression is wrapped in one.
    if isinstance(node, cst.BaseExpression):
        node = cst.SimpleStatementLine([cst.Expr(node)])
    tree = ast.parse(cst.Module(body=[node]).code)
    return {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)}
