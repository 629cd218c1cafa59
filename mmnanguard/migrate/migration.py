"""The state that the steps of a migration share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, Mapping, Optional, Set, Tuple, Union

import libcst as cst

from .config_value import ConfigDict, ConfigValue, leave_out
from .dict_source import entries_of
from .notes import Notes
from .policy import Loop
from .render import Kept
from .source import Source

__all__ = ['LENGTHS', 'TARGETS', 'KeyPath', 'Migration', 'loop_of']

# The keys of 2.x that a key of 1.x becomes; () for a key that is left out.
TARGETS: Dict[str, Tuple[str, ...]] = {
    'optimizer': ('optim_wrapper',),
    'optimizer_config': ('optim_wrapper',),
    'fp16': ('optim_wrapper',),
    'lr_config': ('param_scheduler',),
    'momentum_config': ('param_scheduler',),
    'runner': ('train_cfg',),
    'total_epochs': ('train_cfg',),
    'total_iters': ('train_cfg',),
    'evaluation': ('train_cfg',),
    'data': ('train_dataloader', 'val_dataloader', 'test_dataloader'),
    'checkpoint_config': ('default_hooks',),
    'log_config': ('default_hooks', 'visualizer', 'log_processor'),
    'resume_from': ('resume',),
    'auto_resume': ('resume',),
    'workflow': (),
    'gpu_ids': (),
    'gpus': (),
    'device': (),
    'dist_params': ('env_cfg',),
    'cudnn_benchmark': ('env_cfg',),
    'opencv_num_threads': ('env_cfg',),
    'mp_start_method': ('env_cfg',),
    'seed': ('randomness',),
    'deterministic': ('randomness',),
}
# The keys of 1.x that say how long training takes.
LENGTHS = ('runner', 'total_epochs', 'total_iters')

# A name that a file assigns, alone or with the keys below it; () for no line.
KeyPath = Union[str, Tuple[str, ...]]


@dataclass
class Migration:
    """A config that is being migrated.

    Attributes:
        path: The path of the file.
        source: The file.
        cfg: The value of the config, with everything it inherits, as
            builtins.
        inherited: The merged value of the config's bases.
        notes: The notes for the user.
        loop: The training loop of the whole config, inherited keys included.
        base_loop: The training loop of the bases; None if they have none.
        is_merged: Whether the migration is of the merged value of the config,
            as if one file said all of it, and not of what this file says.
        guard: The overlay of the guard: ``optim_wrapper`` and
            ``default_hooks``.
        is_named: Whether the user named the guard; otherwise it follows the
            precision of the config.
        old: The keys of 1.x that the file sets and that can be migrated.
        moved: The keys of 1.x whose value goes into the files that inherit
            it, so that the statement is removed here.
        kept_back: The keys of 2.x that this file may not set.
        new_bases: The merged value of the bases after their migration.
        is_alone: Whether this file alone is migrated.
        readers: The files above that read a key of this one, by key.
        new: The keys of 2.x that the keys of 1.x become, with their values; a
            dict is merged with the dict of the bases.
        hooks: The entries to add to ``default_hooks``.
    """

    path: Path
    source: Source
    cfg: Mapping[str, ConfigValue]
    inherited: Mapping[str, ConfigValue]
    notes: Notes
    loop: Loop = field(default_factory=lambda: Loop(True, None))
    base_loop: Optional[Loop] = None
    is_merged: bool = False
    guard: ConfigDict = field(default_factory=dict)
    is_named: bool = False
    old: Set[str] = field(default_factory=set)
    moved: Set[str] = field(default_factory=set)
    kept_back: Set[str] = field(default_factory=set)
    new_bases: ConfigDict = field(default_factory=dict)
    is_alone: bool = True
    readers: Mapping[str, str] = field(default_factory=dict)
    new: ConfigDict = field(default_factory=dict)
    hooks: ConfigDict = field(default_factory=dict)

    def set_here(self, name: str) -> ConfigDict:
        """Return the entries of a dict that this file itself sets.

        Inherited entries and ``_delete_`` are left out. The result is empty
        if the name is no key of 1.x that can be migrated, or no dict.
        """
        value = self.cfg.get(name)
        if name not in self.old or not isinstance(value, dict):
            return {}
        dropped = {'_delete_'}
        if self.is_merged:
            return leave_out(value, dropped)
        entries = entries_of(self.source.assigned.get(name))
        # A computed dict does not show which of its entries are inherited:
        # then all count as set here.
        if entries is not None:
            dropped |= {*value} - {*entries}
        return leave_out(value, dropped)

    def keep(self, *path: str, without: Iterable[str] = ()) -> Kept:
        """Carry over the value at a path, without some keys of a dict."""
        value: ConfigValue = self.cfg
        for key in path:
            value = value[key]
        if self.is_merged:
            return Kept(path, value, (*without, '_delete_'))
        value = said(self.source, self.source.node(path), value)
        if len(path) == 1 and isinstance(value, dict):
            # Inherited entries reach the new key through the bases.
            value = self.set_here(path[0])
            if self.replaces(path[0]):
                value['_delete_'] = True
        if not self.inherited:
            # MMEngine leaves _delete_ in a dict that has no base.
            without = (*without, '_delete_')
        return Kept(path, value, tuple(without), is_said=True)

    def is_variable(self, name: str) -> bool:
        """Whether a dict is a variable of this file that has no single value.

        It was imported by ``read_base``, or is changed in place. An assignment
        would replace it, and not be merged.
        """
        if name in self.source.assigned or name in self.source.apart:
            return False
        is_here = name in self.source.tangled or name not in self.inherited
        return is_here and isinstance(self.cfg.get(name), dict)

    def replaces(self, name: str) -> bool:
        """Whether a dict has ``_delete_``, so that it ignores its bases."""
        if self.is_merged:
            return False
        node = self.source.assigned.get(name)
        return '_delete_' in (entries_of(node) or {})

    def done(self, path: KeyPath, text: str) -> None:
        """Note that the key at a path was migrated."""
        self.notes.done.append((self.line(path), text))

    def changed(self, path: KeyPath, text: str) -> None:
        """Note that the key at a path now behaves differently."""
        self.notes.changed.append((self.line(path), text))

    def left(self, path: KeyPath, text: str) -> None:
        """Note a task for the user about the key at a path."""
        self.notes.left.append((self.line(path), text))

    def line(self, path: KeyPath) -> Optional[int]:
        """Return the line of a path's value; None if it is not in the file."""
        if isinstance(path, str):
            path = (path,)
        if not path:
            return None
        return self.source.line(*path)

    @property
    def counts_anew(self) -> bool:
        """Whether this file and its bases count in different units."""
        return (
            self.base_loop is not None
            and self.base_loop.by_epoch != self.loop.by_epoch
        )


def said(
    source: Source, node: Optional[cst.BaseExpression], value: ConfigValue
) -> ConfigValue:
    """Return what a file says of a value that is merged with its bases'."""
    entries = source.entries(node)
    if entries is None or not isinstance(value, dict):
        return value
    made: ConfigDict = {}
    for key, entry in entries.items():
        if key in value:
            made[key] = said(source, entry, value[key])
        elif key == '_delete_':
            # MMEngine drops it where it has deleted something.
            made[key] = True
    return made


def loop_of(cfg: Mapping[str, ConfigValue]) -> Loop:
    """Return the unit and the length of a config's training loop."""
    runner = cfg.get('runner') or {}
    train = cfg.get('train_cfg') or {}
    # total_epochs comes first: mmcv's train tools refuse a runner whose length
    # contradicts it, and use it if there is no runner.
    for name, key, unit in (
        ('total_epochs', 'max_epochs', True),
        ('total_iters', 'max_iters', False),
    ):
        total = cfg.get(name)
        if total is not None and runner.get(key, total) == total:
            return Loop(unit, Kept((name,), cfg[name]))
    # A runner of this file has priority over a train_cfg that a base has
    # already in the form of 2.x.
    for name, config in (('runner', runner), ('train_cfg', train)):
        for key, unit in (('max_epochs', True), ('max_iters', False)):
            if key in config:
                return Loop(unit, Kept((name, key), config[key]))
    # Without a length, the type of the runner, or by_epoch or the type of the
    # loop, says the unit.
    kind = str(runner.get('type') or train.get('type') or '')
    is_epochs = train.get('by_epoch', 'Iter' not in kind)
    return Loop(bool(is_epochs), None)
