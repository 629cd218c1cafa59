"""Migration of ``custom_hooks``, and of guards among all hooks."""

import ast
from collections import Counter
from typing import Counter as Counts
from typing import Mapping, Sequence, Set, Union

import libcst as cst
from libcst import matchers

from mmnanguard.core.hook_source import ENDS_RUN

from .config_value import ConfigDict, ConfigValue
from .dict_source import (
    Container,
    Part,
    all_parts,
    drop,
    edit_dict,
    entries_of,
    with_parts,
)
from .guarded_types import short
from .hook_guards import hand_of, report_others
from .migration import Migration
from .nan_hooks import (
    AUTOPSY,
    HOOKS,
    IN_A_ROW,
    HandWritten,
    guard_options,
    looks_alike,
    strictest,
)
from .project_source import find_hook
from .source import names_in, stored_in

__all__ = ['migrate_custom_hooks']

NAMES = ('custom_hooks', 'default_hooks')
# Methods of a list that cannot do without the hook that they add.
ADDS = ('append', 'insert')


def migrate_custom_hooks(m: Migration, is_1x: bool) -> None:
    """Remove hand-written guards, and give the EMAHook its form of 2.x."""
    for name in NAMES:
        # default_hooks is a key of 2.x: its hooks were written for MMEngine.
        edit = HookEdit(m, is_1x and name == 'custom_hooks')
        if name in m.source.assigned:
            edit_assigned(m, name, edit)
        elif name in m.source.tangled:
            edit_statements(m, name, edit)
        remove_variables(m, edit)
        report_others(m, name, edit.removed)


def edit_assigned(m: Migration, name: str, edit: 'HookEdit') -> None:
    """Edit the hooks of a name that one statement sets."""
    node = m.source.assigned[name]
    edited = node.visit(edit)
    assert isinstance(edited, cst.BaseExpression)
    if not edited.deep_equals(node):
        m.source.assigned[name] = edited
        # None means no new value: place() takes the edited source.
        m.new.setdefault(name, None)
    edit.note_edited(m.source.place[name], edited)
    # Lists that the expression takes in, such as base_hooks + [...].
    for variable in sorted(names_in(node)):
        value = m.source.assigned.get(variable)
        if isinstance(value, cst.List) and variable not in NAMES:
            edited = value.visit(edit)
            assert isinstance(edited, cst.BaseExpression)
            place = m.source.place[variable]
            edit.note_edited(place, edited)
            if not edited.deep_equals(value):
                code = m.source.module.code_for_node(edited)
                m.source.new[place] = [f'{variable} = {code}']


def edit_statements(m: Migration, name: str, edit: 'HookEdit') -> None:
    """Edit the hooks of a name that several statements set or change."""
    for index, statement in enumerate(m.source.statements):
        if name not in stored_in(statement):
            continue
        edited = statement.visit(edit)
        if isinstance(edited, cst.RemovalSentinel):
            edit.note_edited(index, cst.Pass())
            m.source.new[index] = []
        elif isinstance(edited, cst.CSTNode):
            edit.note_edited(index, edited)
            if not edited.deep_equals(statement):
                # The lines above it stay where they are.
                bare = edited.with_changes(leading_lines=[])
                m.source.new[index] = [m.source.module.code_for_node(bare)]


def remove_variables(m: Migration, edit: 'HookEdit') -> None:
    """Remove the variables of removed hooks that nothing else reads."""
    for name in edit.variables - edit.names:
        place = m.source.place[name]
        if {*m.source.readers(name, place)} <= edit.statements:
            m.source.new[place] = []


class HookEdit(cst.CSTTransformer):
    """An edit of the hooks in a list or a dict.

    Args:
        m: The migration, which takes the notes and the new hooks.
        is_1x: Whether the hooks were written for mmcv 1.x.

    Attributes:
        removed: The number of removed hooks of each type.
        variables: The names of variables that held removed hooks.
        statements: The indices of the edited statements.
        names: The names that the edited statements still read.
    """

    def __init__(self, m: Migration, is_1x: bool) -> None:
        super().__init__()
        self.m, self.is_1x = m, is_1x
        self.removed: Counts[str] = Counter()
        self.variables: Set[str] = set()
        self.statements: Set[int] = set()
        self.names: Set[str] = set()

    def note_edited(self, index: int, node: cst.CSTNode) -> None:
        """Note that a statement was edited, and what is left of it."""
        self.statements.add(index)
        for name in matchers.findall(node, matchers.Name()):
            assert isinstance(name, cst.Name)
            self.names.add(name.value)

    def visit_Call(self, node: cst.Call) -> bool:
        """Whether to look into a call: not into a hook's options."""
        return not is_hook(node)

    def visit_Dict(self, node: cst.Dict) -> bool:
        """Whether to look into a dict: not into a hook's options."""
        return not is_hook(node)

    def leave_List(
        self, original_node: cst.List, updated_node: cst.List
    ) -> Container:
        """Edit the hooks of a list."""
        return self.edit(updated_node, original_node.elements)

    def leave_Dict(
        self, original_node: cst.Dict, updated_node: cst.Dict
    ) -> Container:
        """Edit the hooks of a dict."""
        return self.edit(updated_node, original_node.elements)

    def leave_Call(
        self, original_node: cst.Call, updated_node: cst.Call
    ) -> Container:
        """Edit the hooks of ``dict(...)``, or of a call that adds one."""
        return self.edit(updated_node, original_node.args)

    def leave_Expr(
        self, original_node: cst.Expr, updated_node: cst.Expr
    ) -> Union[cst.Expr, cst.RemovalSentinel]:
        """Remove a call whose hook is removed, such as an append."""
        before, call = original_node.value, updated_node.value
        if (
            isinstance(before, cst.Call)
            and isinstance(call, cst.Call)
            and isinstance(call.func, cst.Attribute)
            and call.func.attr.value in ADDS
            and len(call.args) < len(before.args)
        ):
            return cst.RemoveFromParent()
        return updated_node

    def leave_SimpleStatementLine(
        self,
        original_node: cst.SimpleStatementLine,
        updated_node: cst.SimpleStatementLine,
    ) -> Union[cst.SimpleStatementLine, cst.RemovalSentinel]:
        """Remove a line of which nothing is left."""
        if not updated_node.body:
            return cst.RemoveFromParent()
        return updated_node

    def leave_Assign(
        self, original_node: cst.Assign, updated_node: cst.Assign
    ) -> Union[cst.Assign, cst.RemovalSentinel]:
        """Remove ``default_hooks['name'] = dict(...)`` of a guard."""
        is_entry = isinstance(
            original_node.targets[0].target, (cst.Subscript, cst.Attribute)
        )
        if is_entry and self.is_removed(original_node.value):
            return cst.RemoveFromParent()
        return updated_node

    def edit(self, node: Container, parts: Sequence[Part]) -> Container:
        """Replace or report each hook among the entries of a container.

        Args:
            node: The container, whose entries may be edited already.
            parts: The container's original entries. Only original nodes have
                known lines.
        """
        # The entries of a hook are its options, and no hooks.
        if is_hook(node):
            return node
        gone = []
        for index, part in enumerate(parts):
            if self.is_removed(part.value):
                # Removed at the end, so that the indices stay valid.
                gone.append(index)
                continue
            options = read_literals(part.value)
            kind = self.kind_of(options)
            line = self.m.source.positions[part].start.line
            if kind == 'EMAHook' and self.is_1x:
                node = self.averaging(node, index, line, options)
            elif self.is_1x and kind != 'None' and not looks_alike(kind):
                note = (
                    f'{kind} was written for mmcv: its stages have other '
                    'arguments in MMEngine (batch_idx, data_batch, outputs)'
                )
                self.m.notes.left.append((line, note))
        if not gone:
            return node
        return drop(node, gone)

    def is_removed(self, node: cst.BaseExpression) -> bool:
        """Whether an expression is a guard's config; notes what replaces it.

        The expression may be the name of a variable.
        """
        line = self.m.source.positions[node].start.line
        variable = node.value if isinstance(node, cst.Name) else ''
        options = read_literals(self.m.source.assigned.get(variable, node))
        kind = self.kind_of(options)
        hand = hand_of(self.m, kind)
        if hand is None:
            if looks_alike(kind):
                note = (
                    f'{kind} looks like a guard of your own: a hook cannot '
                    'veto an update, the wrapper does; delete it if so'
                )
                self.m.notes.left.append((line, note))
            return False
        source = None
        if kind not in HOOKS:
            source = find_hook(self.m.path, self.m.cfg, kind)
        if source is not None and source.does_more():
            note = f'{kind} {ENDS_RUN}: take this out of it'
            self.m.notes.left.append((line, note))
            self.removed[kind] += 1
            return False
        self.replace(line, kind, hand, options)
        self.removed[kind] += 1
        if variable:
            self.variables.add(variable)
        return True

    def kind_of(self, options: Mapping[str, ConfigValue]) -> str:
        """Return the bare name of a hook's type, as its module has it."""
        kind = short(options.get('type'))
        return self.m.source.imported_names().get(kind, kind)

    def replace(
        self,
        line: int,
        kind: str,
        hand: HandWritten,
        options: Mapping[str, ConfigValue],
    ) -> None:
        """Note that the guard replaces a hook; take over the hook's limit."""
        more = ''
        if hand.hooks:
            more = f' and {AUTOPSY["type"]}'
        self.m.notes.done.append(
            (line, f'{kind} -> the guard{more}: {hand.why}')
        )
        for name in hand.hooks:
            self.m.hooks[name] = dict(AUTOPSY)
        policy = guard_options(hand, options)
        if policy:
            # Several hooks may have a limit: the strictest ends the run first.
            wrapper = self.m.new.setdefault('optim_wrapper', {})
            wrapper['guard'] = strictest(wrapper.get('guard', {}), policy)
            note = (
                f'{hand.limit}={options[hand.limit]} -> {policy}: {IN_A_ROW}'
            )
            self.m.notes.changed.append((line, note))
        elif hand.stops:
            note = (
                f'{kind} ended the run; now a bad update is skipped, and '
                'guard.max_consecutive_skips in a row end it (20 unless set; '
                '1 is the first)'
            )
            self.m.notes.changed.append((line, note))

    def averaging(
        self,
        node: ConfigValue,
        index: int,
        line: int,
        options: Mapping[str, ConfigValue],
    ) -> ConfigValue:
        """Return the container with its EMAHook in the form of MMEngine."""
        # The defaults are those of mmcv's EMAHook.
        momentum = options.get('momentum', 0.0002)
        interval = options.get('interval', 1)
        # None removes the entries: MMEngine's EMAHook has neither option.
        changes: ConfigDict = dict(warm_up=None, resume_from=None)
        if 'momentum' not in options or interval != 1:
            # mmcv raises the momentum to the power of the interval.
            changes['momentum'] = momentum**interval
        note = 'EMAHook: the averages are the state_dict of a checkpoint now'
        # mmcv used the smaller of momentum and (1 + iter) / (warm_up + iter).
        # The second term grows from 1 / warm_up, so that the warm-up had an
        # effect only on a larger momentum.
        if momentum > 1 / options.get('warm_up', 100):
            note += ', and its warm-up is left out (MomentumAnnealingEMA)'
        self.m.notes.changed.append((line, note))
        parts = all_parts(node)
        parts[index] = parts[index].with_changes(
            value=edit_dict(parts[index].value, changes)
        )
        return with_parts(node, parts)


def is_hook(node: cst.CSTNode) -> bool:
    """Whether a node is the config of a hook, and not of several."""
    return 'type' in (entries_of(node) or {})


def read_literals(node: cst.BaseExpression) -> ConfigDict:
    """Return the entries of a dict that are literals.

    A ``type`` that is no literal (a class) is returned as its source.
    """
    literals: ConfigDict = {}
    for key, value in (entries_of(node) or {}).items():
        try:
            literals[key] = eval_literal(value)
        except ValueError:
            if key == 'type':
                literals[key] = cst.Module([]).code_for_node(value)
    return literals


def eval_literal(node: cst.BaseExpression) -> ConfigValue:
    """Return the value of a literal.

    Raises:
        ValueError: If the expression is no literal.
    """
    return ast.literal_eval(cst.Module([]).code_for_node(node))
