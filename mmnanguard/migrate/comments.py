"""Where comments go when the statement that they are about does."""

import re
from collections import defaultdict
from typing import Any, Collection, Dict, List, Mapping, Sequence, Tuple

import libcst as cst
from libcst import matchers

__all__ = ['place_comments']

Lines = List[cst.EmptyLine]
FORMATTER = re.compile(r'#\s*(yapf|fmt):')  # of a place, not of a key


def place_comments(
    statements: Sequence[Any],
    new: Mapping[int, List[str]],
    stays: Collection[int],
    heir: Mapping[int, int],
) -> Tuple[List[Lines], Mapping[int, Lines]]:
    """Lines that stay above each statement, and those that come there.

    What is said of a key goes with it: the comment right above it, and those
    in it that its new form does not have.

    Args:
        statements: Of the old file.
        new: What statements become.
        stays: Those that stay beside it.
        heir: Which one goes on for another.
    """
    text = '\n'.join(each for texts in new.values() for each in texts)
    there = [line.rstrip() for line in text.split('\n')]
    above: List[Lines] = []
    moved: Dict[int, Lines] = defaultdict(list)
    for index, statement in enumerate(statements):
        lines = list(statement.leading_lines)
        if index not in new or index in stays:
            above.append(lines)
            continue
        is_gone = not new[index]
        place = heir.get(index, index) if is_gone else index
        start = len(lines)
        if place != index:
            start -= len_of_comment(lines)
        above.append(lines[:start])
        moved[place] += lines[start:]
        moved[place] += [
            cst.EmptyLine(comment=comment)
            for comment in inner(statement, is_gone)
            if not any(line.endswith(comment.value) for line in there)
        ]
    return above, moved


def len_of_comment(lines: Lines) -> int:
    """How many lines, right above a statement, are about it."""
    for number, line in enumerate(reversed(lines)):
        if not line.comment or FORMATTER.match(line.comment.value):
            return number
    return len(lines)


def inner(statement: Any, is_whole: bool) -> List[Any]:
    """Comments in it, and, where it goes as a whole, that at its end."""
    bare = statement.with_changes(leading_lines=[])
    if not is_whole:
        bare = bare.with_changes(trailing_whitespace=cst.TrailingWhitespace())
    return list(matchers.findall(bare, matchers.Comment()))
