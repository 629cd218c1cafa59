"""Configs as data: their text is parsed, and none of it is run."""

import ast
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

__all__ = ['parse_config']

# The parts of a config that a replay builds.
NEEDED = ('model', 'optim_wrapper')

# ``pretty_text`` writes these numbers by their ``repr``, which is a name.
NUMBERS = {'nan': float('nan'), 'inf': float('inf')}
# The builtins that may be called, since they make nothing but data.
KINDS: Mapping[str, Callable[..., object]] = {
    'dict': dict,
    'list': list,
    'tuple': tuple,
    'set': set,
    'frozenset': frozenset,
    'range': range,
    'slice': slice,
}


def parse_config(text: str) -> Dict[str, Any]:
    """Read ``Config.pretty_text`` back as far as it is data.

    Data are assignments of literals, of nan and inf, and of calls of dict,
    list, tuple and similar builtins.

    Raises:
        ValueError: If the text holds anything else, or lacks a part that a
            replay builds; the error continues a sentence that begins with
            'its config'.
    """
    try:
        cfg = {}
        for statement in ast.parse(text).body:
            name, value = _item(statement, text)
            cfg[name] = value
    except (SyntaxError, RecursionError, MemoryError) as error:
        # Deeply nested text exceeds the limits of the parser, or of _value().
        raise ValueError(f'is no Python ({error})') from error
    missing = [f'`{key}`' for key in NEEDED if not cfg.get(key)]
    if missing:
        raise ValueError(f'has no {" and no ".join(missing)}')
    return cfg


def _item(statement: ast.stmt, text: str) -> Tuple[str, object]:
    """Return name and value of an assignment to a single name.

    Raises:
        NotData: If the statement is anything else.
    """
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, _value(statement.value, text)
    raise _not_data(statement, text)


def _value(node: Any, text: str) -> Any:
    """Return the value of an expression.

    Args:
        node: The node of the expression.
        text: The text of the whole config, for the error.

    Raises:
        NotData: If the expression, or a part of it, is not data.
    """

    def value(part: Optional[ast.AST]) -> Any:
        return _value(part, text)

    try:
        if isinstance(node, ast.Name) and node.id in NUMBERS:
            return NUMBERS[node.id]
        # ast.literal_eval does not negate `inf`, which is a name.
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.List):
            return list(map(value, node.elts))
        if isinstance(node, ast.Tuple):
            return tuple(map(value, node.elts))
        if isinstance(node, ast.Set):
            return set(map(value, node.elts))
        # A key of None is the unpacking of another dict.
        if isinstance(node, ast.Dict) and None not in node.keys:
            return dict(zip(map(value, node.keys), map(value, node.values)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {}
            for keyword in node.keywords:
                # A keyword without a name is the unpacking of a dict.
                if keyword.arg is None:
                    raise _not_data(node, text)
                named[keyword.arg] = value(keyword.value)
            parts = list(map(value, node.args))
            return KINDS[node.func.id](*parts, **named)
        return ast.literal_eval(node)
    except NotData:
        # The error names a part of this expression, which says more than the
        # whole.
        raise
    except (KeyError, TypeError, ValueError):
        raise _not_data(node, text) from None


class NotData(ValueError):
    """An error that names the line and the code that is not data."""


def _not_data(node: Any, text: str) -> NotData:
    """Return the error for a node of the config's text."""
    code = str(ast.get_source_segment(text, node))[:80]
    return NotData(
        f'cannot be read back as data (line {node.lineno} has {code})'
    )
