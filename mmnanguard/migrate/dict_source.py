"""A dict in a config's source, as ``dict(a=1)`` or as ``{'a': 1}``."""

from typing import Any, Collection, Dict, List, Mapping, Optional

import libcst as cst

from .render import render

__all__ = ['drop', 'edit_dict', 'entries_of']

MISSING = object()


def entries_of(node: Any) -> Optional[Dict[str, cst.BaseExpression]]:
    """Its values by key; None if it is none, or has a ``**``."""
    parts = parts_of(node)
    keys = [key_of(part) for part in parts or []]
    if parts is None or None in keys:
        return None
    return {key: part.value for key, part in zip(keys, parts) if key}


def parts_of(node: Any) -> Optional[List[Any]]:
    if isinstance(node, cst.Dict):
        return list(node.elements)
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
        return list(node.args) if node.func.value == 'dict' else None
    return None


def key_of(part: Any) -> Optional[str]:
    if isinstance(part, cst.Arg):
        return part.keyword.value if part.keyword else None
    if isinstance(part, cst.DictElement) and isinstance(
        part.key, cst.SimpleString
    ):
        return str(part.key.evaluated_value)
    return None


def edit_dict(node: Any, changes: Mapping[str, Any]) -> Any:
    """Entries set, added at the end, or, where the change is None, removed.

    Args:
        node: For which :func:`entries_of` is not None.
        changes: A mapping among them is a change of the entry of that name,
            if there is one. What is set is plain, or a node.
    """
    parts = parts_of(node) or []
    separator = separator_of(node, parts)
    changes = dict(changes)
    kept, gone = [], []
    for index, part in enumerate(parts):
        key = key_of(part)
        change = changes.pop(key or '', MISSING)
        if change is None:
            gone.append(index)
        if change in (None, MISSING):
            kept.append(part)
        elif (
            isinstance(change, Mapping) and entries_of(part.value) is not None
        ):
            kept.append(part.with_changes(value=edit_dict(part.value, change)))
        else:
            kept.append(part.with_changes(value=as_node(change)))
    node = drop(with_parts(node, kept), gone)
    kept = parts_of(node) or []
    for key, change in changes.items():
        if change is not None:
            append(kept, new_part(node, key, as_node(change)), separator)
    return with_parts(node, kept)


def with_parts(node: Any, parts: List[Any]) -> Any:
    name = 'args' if isinstance(node, cst.Call) else 'elements'
    return node.with_changes(**{name: parts})


def drop(node: Any, gone: Collection[int]) -> Any:
    """Without some entries of a dict, or of a list.

    Lines of comment after one belong to the next, and stay.
    """
    parts = list(node.args if isinstance(node, cst.Call) else node.elements)
    kept: List[Any] = []
    for index, part in enumerate(parts):
        if index not in gone:
            kept.append(part)
            continue
        after = getattr(part.comma, 'whitespace_after', None)
        if index + 1 == len(parts):
            if kept:
                kept[-1] = kept[-1].with_changes(comma=part.comma)
        elif isinstance(after, cst.ParenthesizedWhitespace):
            if kept:
                comma = kept[-1].comma
                kept[-1] = kept[-1].with_changes(
                    comma=comma.with_changes(
                        whitespace_after=joined(comma.whitespace_after, after)
                    )
                )
            else:
                node = opened(node, joined(opening(node), after))
    return with_parts(node, kept)


def joined(first: Any, second: Any) -> Any:
    if not isinstance(first, cst.ParenthesizedWhitespace):
        return first
    return first.with_changes(
        empty_lines=[*first.empty_lines, *second.empty_lines]
    )


BRACKETS: Dict[Any, str] = {cst.Dict: 'lbrace', cst.List: 'lbracket'}


def opening(node: Any) -> Any:
    """White space before the first entry."""
    if isinstance(node, cst.Call):
        return node.whitespace_before_args
    return getattr(node, BRACKETS[type(node)]).whitespace_after


def opened(node: Any, space: Any) -> Any:
    if isinstance(node, cst.Call):
        return node.with_changes(whitespace_before_args=space)
    name = BRACKETS[type(node)]
    bracket = getattr(node, name).with_changes(whitespace_after=space)
    return node.with_changes(**{name: bracket})


def as_node(value: Any) -> cst.BaseExpression:
    if isinstance(value, cst.BaseExpression):
        return value
    return cst.parse_expression(render(value, lambda kept: None))


def new_part(node: Any, key: str, value: cst.BaseExpression) -> Any:
    if isinstance(node, cst.Dict):
        return cst.DictElement(cst.SimpleString(repr(key)), value)
    equal = cst.AssignEqual(
        whitespace_before=cst.SimpleWhitespace(''),
        whitespace_after=cst.SimpleWhitespace(''),
    )
    return cst.Arg(value, keyword=cst.Name(key), equal=equal)


def separator_of(node: Any, parts: List[Any]) -> Any:
    """The white space between two entries."""
    if len(parts) > 1:
        return without_comment(parts[0].comma.whitespace_after)
    before = opening(node)
    if isinstance(before, cst.ParenthesizedWhitespace):
        return without_comment(before)
    return cst.SimpleWhitespace(' ')


def without_comment(space: Any) -> Any:
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return space
    return space.with_changes(
        first_line=cst.TrailingWhitespace(), empty_lines=[]
    )


def append(parts: List[Any], part: Any, separator: Any) -> None:
    """After the last one, whose comment stays beside it."""
    if not parts:
        parts.append(part)
        return
    last = parts[-1]
    after = getattr(last.comma, 'whitespace_after', None)
    between, closing = separator, last.comma
    if isinstance(after, cst.ParenthesizedWhitespace):
        closing = cst.Comma(whitespace_after=without_comment(after))
        if isinstance(separator, cst.ParenthesizedWhitespace):
            between = separator.with_changes(first_line=after.first_line)
    parts[-1] = last.with_changes(comma=cst.Comma(whitespace_after=between))
    parts.append(part.with_changes(comma=closing))
