"""Comments, which move with the statement that they are about."""

import re
from collections import defaultdict
from typing import Collection, Dict, List, Mapping, Sequence, Tuple, Union

import libcst as cst
from libcst import matchers

__all__ = ['Statement', 'place_comments']

# The entries of a libcst module's body.
Statement = Union[cst.SimpleStatementLine, cst.BaseCompoundStatement]

Lines = List[cst.EmptyLine]
# Switches of a formatter are about a place in the file, not about a key.
FORMATTER = re.compile(r'#\s*(yapf|fmt):')


def place_comments(
    statements: Sequence[Statement],
    new: Mapping[int, List[str]],
    stays: Collection[int],
    heir: Mapping[int, int],
) -> Tuple[List[Lines], Mapping[int, Lines]]:
    """Decide which comments stand above which statement of the new file.

    The comments about a key move with its statement: the block right above
    the statement, and the comments within it that the new form lacks.

    Args:
        statements: The statements of the old file.
        new: The source that replaces a statement, by the statement's index.
        stays: Indices of statements that stay beside their replacement.
        heir: The index of the statement that takes over for a removed one.

    Returns:
        The lines that stay above each statement; and the lines that move, by
        the index of the statement above which they will stand.
    """
    new_texts: List[str] = []
    for texts in new.values():
        new_texts += texts
    new_lines = list(map(str.rstrip, '\n'.join(new_texts).split('\n')))
    above: List[Lines] = []
    moved: Dict[int, Lines] = defaultdict(list)
    for index, statement in enumerate(statements):
        lines = list(statement.leading_lines)
        if index not in new or index in stays:
            above.append(lines)
            continue
        is_gone = not new[index]
        place = index
        if is_gone:
            place = heir.get(index, index)
        start = len(lines)
        # A statement that is replaced in its place keeps all lines above it.
        if place != index:
            start -= comment_length(lines)
        above.append(lines[:start])
        moved[place] += lines[start:]
        for comment in inner_comments(statement, is_gone):
            # A comment inside source that was moved has moved already.
            if not any(line.endswith(comment.value) for line in new_lines):
                moved[place].append(cst.EmptyLine(comment=comment))
    return above, moved


def comment_length(lines: Lines) -> int:
    """Return how many of the lines right above a statement are about it."""
    for number, line in enumerate(reversed(lines)):
        if not line.comment or FORMATTER.match(line.comment.value):
            return number
    return len(lines)


def inner_comments(
    statement: Statement, is_removed: bool
) -> List[cst.Comment]:
    """Return the comments within a statement.

    The comment at the end of its last line counts only if the statement is
    removed: otherwise it stays at the end of the replacement.
    """
    # libcst counts the lines above a statement as part of it.
    bare = statement.with_changes(leading_lines=[])
    # The last line of a compound statement is within it.
    if not is_removed and isinstance(bare, cst.SimpleStatementLine):
        bare = bare.with_changes(trailing_whitespace=cst.TrailingWhitespace())
    comments = matchers.findall(bare, matchers.Comment())
    return [node for node in comments if isinstance(node, cst.Comment)]
