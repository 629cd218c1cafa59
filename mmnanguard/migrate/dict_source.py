"""Dicts in a config's source, written as ``dict(a=1)`` or ``{'a': 1}``."""

from typing import Collection, Dict, List, Mapping, Optional, Sequence, Union

import libcst as cst

from .render import render

__all__ = [
    'Container',
    'Part',
    'all_parts',
    'drop',
    'edit_dict',
    'entries_of',
    'with_parts',
]

# A node that holds entries, and the nodes of its entries. A Call stands for
# dict(...), the notation of nearly all configs of the mm projects.
Container = Union[cst.Dict, cst.List, cst.Call]
Part = Union[cst.BaseDictElement, cst.BaseElement, cst.Arg]
# Marks an entry that has no change; None marks its removal.
MISSING = object()


def entries_of(
    node: Optional[cst.CSTNode],
) -> Optional[Dict[str, cst.BaseExpression]]:
    """Return a dict's values by key.

    None if the node is no dict, or has a ``**`` or a key that is no string.
    """
    parts = parts_of(node)
    if parts is None:
        return None
    entries = {}
    for part in parts:
        key = key_of(part)
        if key is None:
            # ** may set any key, so the entries found so far may be wrong.
            return None
        entries[key] = part.value
    return entries


def parts_of(node: Optional[cst.CSTNode]) -> Optional[List[Part]]:
    """Return the entries of a dict as nodes; None if it is no dict."""
    if isinstance(node, cst.Dict):
        return list(node.elements)
    if (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Name)
        and node.func.value == 'dict'
    ):
        return list(node.args)
    return None


def key_of(part: Part) -> Optional[str]:
    """Return the key of a dict's entry; None if it is no string."""
    # An argument without a keyword is *args, **kwargs or dict(pairs).
    if isinstance(part, cst.Arg) and part.keyword:
        return part.keyword.value
    if isinstance(part, cst.DictElement) and isinstance(
        part.key, cst.SimpleString
    ):
        return str(part.key.evaluated_value)
    return None


def edit_dict(
    node: cst.BaseExpression, changes: Mapping[str, object]
) -> cst.BaseExpression:
    """Return a dict with some entries set or removed.

    Args:
        node: A dict, for which :func:`entries_of` is not None.
        changes: A plain value or a node for each key; a new key is added at
            the end. None removes the entry. A mapping edits the entry
            if the entry is a dict, and replaces it otherwise.
    """
    assert isinstance(node, (cst.Dict, cst.Call))
    parts = parts_of(node) or []
    # The separator is read before the edit, which may remove the entry that
    # shows it.
    separator = separator_of(node, parts)
    changes = dict(changes)
    kept: List[Part] = []
    gone = []
    for index, part in enumerate(parts):
        key = key_of(part)
        change = changes.pop(key or '', MISSING)
        if change is None:
            gone.append(index)
        # A removed entry stays until drop() has moved its comments.
        if change in (None, MISSING):
            kept.append(part)
        elif (
            isinstance(change, Mapping) and entries_of(part.value) is not None
        ):
            kept.append(part.with_changes(value=edit_dict(part.value, change)))
        else:
            kept.append(part.with_changes(value=as_node(change)))
    edited = drop(with_parts(node, kept), gone)
    kept = parts_of(edited) or []
    for key, change in changes.items():
        if change is not None:
            append(kept, new_part(edited, key, as_node(change)), separator)
    return with_parts(edited, kept)


def with_parts(node: Container, parts: Sequence[Part]) -> Container:
    """Return a dict, list or call with other entries."""
    if isinstance(node, cst.Call):
        return node.with_changes(args=parts)
    return node.with_changes(elements=parts)


def all_parts(node: Container) -> List[Part]:
    """Return the nodes of all entries of a dict, list or call."""
    if isinstance(node, cst.Call):
        return list(node.args)
    return list(node.elements)


def drop(node: Container, gone: Collection[int]) -> Container:
    """Return a dict or a list without the entries at some indices.

    Comment lines after a removed entry are about the next entry, and stay.
    """
    parts = all_parts(node)
    kept: List[Part] = []
    for index, part in enumerate(parts):
        if index not in gone:
            kept.append(part)
            continue
        after = space_after(part)
        if index + 1 == len(parts):
            # The entry before it becomes the last, and ends as this one did:
            # with or without a comma.
            if kept:
                kept[-1] = kept[-1].with_changes(comma=part.comma)
        elif isinstance(after, cst.ParenthesizedWhitespace):
            if kept:
                comma = kept[-1].comma
                # There is a comma, because another entry followed.
                assert isinstance(comma, cst.Comma)
                space = join_spaces(comma.whitespace_after, after)
                kept[-1] = kept[-1].with_changes(
                    comma=comma.with_changes(whitespace_after=space)
                )
            else:
                # There is no entry before it, so the comments go behind the
                # opening bracket.
                node = with_opening(node, join_spaces(opening(node), after))
    return with_parts(node, kept)


def space_after(part: Part) -> Optional[cst.BaseParenthesizableWhitespace]:
    """Return the white space after an entry's comma; None without one."""
    if isinstance(part.comma, cst.Comma):
        return part.comma.whitespace_after
    return None


def join_spaces(
    first: cst.BaseParenthesizableWhitespace,
    second: cst.ParenthesizedWhitespace,
) -> cst.BaseParenthesizableWhitespace:
    """Return the first white space, with the comment lines of the second."""
    # On a single line there is no place for a comment line.
    if not isinstance(first, cst.ParenthesizedWhitespace):
        return first
    return first.with_changes(
        empty_lines=[*first.empty_lines, *second.empty_lines]
    )


def opening(node: Container) -> cst.BaseParenthesizableWhitespace:
    """Return the white space before the first entry."""
    if isinstance(node, cst.Call):
        return node.whitespace_before_args
    if isinstance(node, cst.List):
        return node.lbracket.whitespace_after
    return node.lbrace.whitespace_after


def with_opening(
    node: Container, space: cst.BaseParenthesizableWhitespace
) -> Container:
    """Return a container with other white space before its first entry."""
    if isinstance(node, cst.Call):
        return node.with_changes(whitespace_before_args=space)
    if isinstance(node, cst.List):
        bracket = node.lbracket.with_changes(whitespace_after=space)
        return node.with_changes(lbracket=bracket)
    brace = node.lbrace.with_changes(whitespace_after=space)
    return node.with_changes(lbrace=brace)


def as_node(value: object) -> cst.BaseExpression:
    """Return the expression for a plain value; a node is returned as is."""
    if isinstance(value, cst.BaseExpression):
        return value
    return cst.parse_expression(render(value, lambda kept: None))


def new_part(
    node: Container, key: str, value: cst.BaseExpression
) -> Union[cst.DictElement, cst.Arg]:
    """Return a new entry in the notation that a dict is written in."""
    if isinstance(node, cst.Dict):
        return cst.DictElement(cst.SimpleString(repr(key)), value)
    # libcst would write spaces around the equal sign.
    equal = cst.AssignEqual(
        whitespace_before=cst.SimpleWhitespace(''),
        whitespace_after=cst.SimpleWhitespace(''),
    )
    return cst.Arg(value, keyword=cst.Name(key), equal=equal)


def separator_of(
    node: Container, parts: Sequence[Part]
) -> cst.BaseParenthesizableWhitespace:
    """Return the white space to put between two entries."""
    # After the comma of a single entry comes the closing bracket, so its
    # white space may be that of another indentation.
    between = space_after(parts[0]) if len(parts) > 1 else None
    if between is not None:
        return without_comment(between)
    before = opening(node)
    if isinstance(before, cst.ParenthesizedWhitespace):
        return without_comment(before)
    return cst.SimpleWhitespace(' ')


def without_comment(
    space: cst.BaseParenthesizableWhitespace,
) -> cst.BaseParenthesizableWhitespace:
    """Return white space without comments, with its line break."""
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return space
    return space.with_changes(
        first_line=cst.TrailingWhitespace(), empty_lines=[]
    )


def append(
    parts: List[Part], part: Part, separator: cst.BaseParenthesizableWhitespace
) -> None:
    """Append an entry; the comment beside the last entry stays there."""
    if not parts:
        parts.append(part)
        return
    last = parts[-1]
    after = space_after(last)
    between, closing = separator, last.comma
    if isinstance(after, cst.ParenthesizedWhitespace):
        # The white space before the closing bracket goes to the new end; its
        # first line has the comment on the entry before, which stays there.
        closing = cst.Comma(whitespace_after=without_comment(after))
        if isinstance(separator, cst.ParenthesizedWhitespace):
            between = separator.with_changes(first_line=after.first_line)
    parts[-1] = last.with_changes(comma=cst.Comma(whitespace_after=between))
    parts.append(part.with_changes(comma=closing))
