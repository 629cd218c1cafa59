"""Migration of the model's own ``train_cfg`` and ``test_cfg``."""

from typing import Dict, Optional

import libcst as cst

from .dict_source import edit_dict, entries_of
from .migration import Migration
from .model_keys import is_none
from .source import names_in

__all__ = ['migrate_model']

EMPTY = ('None', 'dict()', '{}')


def migrate_model(m: Migration) -> None:
    """Move the model's keys from the top level into the model."""
    source = m.source
    model = source.assigned.get('model')
    entries = entries_of(model)
    is_set = 'model' in {*source.assigned, *source.tangled}
    inherited = m.inherited.get('model') or {}
    inside: Dict[str, cst.BaseExpression] = {}
    for name, (index, node) in source.apart.items():
        line = source.line_of(index)
        target = f'model.{name}'
        readers = source.readers(name, index)
        source.new[index] = []
        # 1.x allows the key in both places only if one of them is empty.
        is_both = entries is not None and not is_empty(entries.get(name), name)
        if is_both or (entries is not None and not late_names(m, node)):
            at = source.place['model']
            source.heir[index] = at
            readers = [reader for reader in readers if reader != at]
            # None is the default of the model's class.
            if not is_both and (not is_none(node) or inherited.get(name)):
                inside[name] = source.moved(node, 4, name + '=')
        elif is_set:
            source.new[index] = [assignment(m, f"model['{name}']", node)]
        elif inherited:
            source.new[index] = [assignment(m, f'model = dict({name}', node)]
            is_set = True
        elif is_empty(node):
            target = 'nothing, for it is empty'
        else:
            # A part beside another one that has the model.
            target = f'model_{name}'
            source.new[index] = [assignment(m, target, node)]
            m.notes.left.append(
                (line, f'{name} is of the model: give it {name}={target}')
            )
        m.notes.done.append((line, f'{name} -> {target}'))
        if readers:
            source.stays.add(index)
            lines = ', '.join(str(source.line_of(at)) for at in readers)
            m.notes.left.append(
                (
                    line,
                    f'{name} stays, because line {lines} reads it: give it '
                    'another name, for MMEngine takes it for its loop',
                )
            )
    if inside and model is not None:
        code = source.module.code_for_node(edit_dict(model, inside))
        source.new[source.place['model']] = [f'model = {code}']


def is_empty(node: Optional[cst.BaseExpression], name: str = '') -> bool:
    """Whether a value says nothing, or is the variable of this name."""
    code = 'None' if node is None else cst.Module([]).code_for_node(node)
    return code in (*EMPTY, name)


def assignment(m: Migration, start: str, node: cst.BaseExpression) -> str:
    """Return the source of an assignment, or of ``model = dict(key=...)``."""
    is_open = '(' in start
    start += '=' if is_open else ' = '
    moved = m.source.moved(node, 0, start)
    end = ')' if is_open else ''
    return f'{start}{m.source.module.code_for_node(moved)}{end}'


def late_names(m: Migration, node: cst.BaseExpression) -> bool:
    """Whether an expression reads names that the model stands above."""
    late = m.source.defined_after(m.source.place['model'])
    return not names_in(node).isdisjoint(late)
