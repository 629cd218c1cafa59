"""Configs as data: nothing of their text is run."""

import ast
from typing import Any, Dict

__all__ = ['parse_config']

# What a replay builds.
NEEDED = ('model', 'optim_wrapper')

# MMEngine's ``pretty_text`` writes such numbers as words.
NUMBERS = {'nan': float('nan'), 'inf': float('inf')}
KINDS = {
    kind.__name__: kind
    for kind in (dict, list, tuple, set, frozenset, range, slice)
}


def parse_config(text: str) -> Dict[str, Any]:
    """Read ``Config.pretty_text`` back, as far as it is data: assignments of
    literals, of nan and inf, and of calls of dict, list, tuple and the like.

    Raises:
        ValueError: If it holds anything else, or lacks what a replay builds;
            the text goes on from 'its config'.
    """
    try:
        cfg = dict(_item(line, text) for line in ast.parse(text).body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'is no Python ({error})') from error
    missing = [f'`{key}`' for key in NEEDED if not cfg.get(key)]
    if missing:
        raise ValueError(f'has no {" and no ".join(missing)}')
    return cfg


def _item(line: ast.stmt, text: str) -> Any:
    if isinstance(line, ast.Assign) and len(line.targets) == 1:
        name = line.targets[0]
        if isinstance(name, ast.Name):
            return name.id, _value(line.value, text)
    raise _not_data(line, text)


def _value(node: ast.AST, text: str) -> Any:
    def value(part: Any) -> Any:
        return _value(part, text)

    try:
        if isinstance(node, ast.Name) and node.id in NUMBERS:
            return NUMBERS[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.List):
            return [value(part) for part in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(value(part) for part in node.elts)
        if isinstance(node, ast.Set):
            return {value(part) for part in node.elts}
        if isinstance(node, ast.Dict) and None not in node.keys:
            pairs = zip(node.keys, node.values)
            return {value(key): value(part) for key, part in pairs}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {str(key.arg): value(key.value) for key in node.keywords}
            if None not in [key.arg for key in node.keywords]:
                parts = [value(part) for part in node.args]
                return KINDS[node.func.id](*parts, **named)
        return ast.literal_eval(node)
    except (KeyError, TypeError):
        raise _not_data(node, text) from None
    except ValueError as error:
        if isinstance(error, NotData):  # of a part of this
            raise
        raise _not_data(node, text) from None


class NotData(ValueError):
    """Names the line, and what stands there."""


def _not_data(node: Any, text: str) -> NotData:
    found = str(ast.get_source_segment(text, node))[:80]
    return NotData(
        f'cannot be read back as data (line {node.lineno} has {found})'
    )
