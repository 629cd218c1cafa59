"""What the steps of a migration share."""

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Set

from .dict_source import entries_of
from .notes import Notes
from .policy import Loop
from .render import Kept
from .source import Source

__all__ = ['TARGETS', 'Migration']

# What a 1.x key goes into; () is what is only left out.
TARGETS: Dict[str, Any] = {
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


@dataclass
class Migration:
    """A config on its way.

    Attributes:
        source: The file.
        cfg: Its value, with what it inherits; plain.
        inherited: The value of its bases.
        guard: An overlay: optim_wrapper and default_hooks.
        is_named: Was the guard asked for, or does it follow the precision?
        old: Keys of 1.x that it sets, and that can be migrated.
        new: What they become; a dict merges with the bases'.
        hooks: What comes into default_hooks.
    """

    source: Source
    cfg: Mapping[str, Any]
    inherited: Mapping[str, Any]
    notes: Notes
    guard: Dict[str, Any] = field(default_factory=dict)
    is_named: bool = False
    old: Set[str] = field(default_factory=set)
    new: Dict[str, Any] = field(default_factory=dict)
    hooks: Dict[str, Any] = field(default_factory=dict)

    def own(self, name: str) -> Dict[str, Any]:
        """What of a dict this file itself says, but for a _delete_."""
        value = self.cfg.get(name)
        if name not in self.old or not isinstance(value, dict):
            return {}
        entries = entries_of(self.source.assigned.get(name))
        said = {*(value if entries is None else entries)} - {'_delete_'}
        return {key: each for key, each in value.items() if key in said}

    def keep(self, *path: str, without: Any = ()) -> Kept:
        value: Any = self.cfg
        for key in path:
            value = value[key]
        if len(path) == 1 and isinstance(value, dict):
            value = self.own(path[0])
            if self.replaces(path[0]):
                value['_delete_'] = True
        if not self.inherited:  # nothing to be deleted
            without = (*without, '_delete_')
        return Kept(path, value, tuple(without))

    def replaces(self, name: str) -> bool:
        """Does it say _delete_, so that nothing of the bases' is left?"""
        node = self.source.assigned.get(name)
        return '_delete_' in (entries_of(node) or {})

    def done(self, path: Any, text: str) -> None:
        self.notes.done.append((self.line(path), text))

    def changed(self, path: Any, text: str) -> None:
        self.notes.changed.append((self.line(path), text))

    def left(self, path: Any, text: str) -> None:
        self.notes.left.append((self.line(path), text))

    def line(self, path: Any) -> Any:
        path = (path,) if isinstance(path, str) else path
        return self.source.line(*path) if path else None

    @property
    def loop(self) -> Loop:
        """Of the whole config: what is inherited counts too."""
        return loop_of(self.cfg)

    @property
    def counts_anew(self) -> bool:
        """Iterations where the bases count epochs, or the reverse?"""
        keys = {'runner', 'train_cfg', 'total_epochs', 'total_iters'}
        return (
            bool(keys & {*self.inherited})
            and loop_of(self.inherited).by_epoch != self.loop.by_epoch
        )


def loop_of(cfg: Mapping[str, Any]) -> Loop:
    runner = cfg.get('runner') or {}
    train = cfg.get('train_cfg') or {}
    for name, key, unit in (
        ('total_epochs', 'max_epochs', True),
        ('total_iters', 'max_iters', False),
    ):
        total = cfg.get(name)
        if total is not None and runner.get(key, total) == total:
            return Loop(unit, Kept((name,), cfg[name]))
    for name, config in (('runner', runner), ('train_cfg', train)):
        for key, unit in (('max_epochs', True), ('max_iters', False)):
            if key in config:
                return Loop(unit, Kept((name, key), config[key]))
    kind = str(runner.get('type') or train.get('type') or '')
    is_epochs = train.get('by_epoch', not kind.startswith('Iter'))
    return Loop(bool(is_epochs), None)
