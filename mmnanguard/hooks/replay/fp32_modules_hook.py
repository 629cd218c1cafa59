"""The hook that runs modules in float32 while the rest is autocast."""

import difflib
import re
from contextlib import contextmanager
from typing import Any, Iterator, List, Sequence, Set

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmnanguard.core import Autopsy, GuardConfigError
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow
from mmnanguard.numerics.update.blame import plain_name
from mmnanguard.registry import HOOKS

from .._shared.hook_arguments import Checkpoint, DataBatch, Outputs, Row
from .._shared.patches import Patches, PatchingHook
from .._shared.roles import ModelChanger

__all__ = ['Fp32ModulesHook', 'in_fp32']

KEY = 'nanguard_fp32_modules'


@HOOKS.register_module()
class Fp32ModulesHook(PatchingHook, ModelChanger):
    """Runs some modules in float32 while the rest is autocast.

    Their inputs are cast to float32 and autocast is off inside, which is
    where float16 overflows: at 65504.

    Args:
        modules: Patterns: a module's name ('backbone.patch_embed'), a regex
            that must match the whole of it ('re:.*dwconvs.*'), a class name
            ('type:DepthwiseConv'), or a module's method
            ('decode_head.loss_by_feat'), since mm heads run ``loss`` and
            not ``forward``.
        auto: Add what an autopsy found to overflow and float32 to cure,
            which it has tried, from the next iteration on. Kept in
            checkpoints. Needs AutopsyHook.
        max_auto_modules: At most so many.

    Raises:
        GuardConfigError: At the start of training, for a pattern that
            matches nothing; it lists near names.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        modules: Sequence[str] = (),
        auto: bool = False,
        max_auto_modules: int = 8,
    ) -> None:
        super().__init__()
        if isinstance(modules, str):
            raise GuardConfigError(
                f'Fp32ModulesHook.modules is {modules!r}: it must be a list '
                f'such as [{modules!r}].'
            )
        self._patterns = list(modules)
        self._auto = auto
        self._max_auto_modules = max_auto_modules
        self._added: List[str] = []
        self._due: List[Autopsy] = []
        self._in_fp32: Set[str] = set()

    @property
    def patterns(self) -> List[str]:
        """The patterns of the config, and those that were added."""
        return [*self._patterns, *self._added]

    def before_train(self, runner: Runner) -> None:
        self._in_fp32 = set()
        for pattern in self._patterns:
            self._wrap(runner, pattern)
        for name in list(self._added):
            try:
                self._wrap(runner, name)
            except GuardConfigError as error:  # the model has changed since
                self._added.remove(name)
                runner.logger.warning(f'{error} It is left out.')
        if self._in_fp32:
            names = ', '.join(sorted(self._in_fp32))
            runner.logger.info(f'mmnanguard: in float32 run {names}')

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Note the module that an autopsy blames, if float32 cures it."""
        if not self._auto or row['kind'] != Autopsy.KIND:
            return
        autopsy = Autopsy.from_row(row)
        if autopsy.remedy == FP32 and autopsy.module:
            self._due.append(autopsy)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Add the modules that are due.

        Not earlier, as other hooks may still replay the window as it was.
        """
        for autopsy in self._due:
            if len(self._added) < self._max_auto_modules:
                self._add(runner, target_of(autopsy), autopsy.id)
        self._due = []

    def _add(self, runner: Runner, name: str, event_id: str) -> None:
        if name in self._in_fp32:
            return
        self._wrap(runner, name)
        self._added.append(name)
        config = (
            "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
            f'modules={self.patterns!r}))'
        )
        remedy = RemedyRow(event_id, FP32, name, config)
        runner.logger.warning(remedy.line())
        runner.call_hook('after_guard_row', row=remedy.to_row())

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        if self._added:
            checkpoint[KEY] = list(self._added)

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        if self._auto and runner._resume:
            self._added = list(checkpoint.get(KEY, []))

    def _wrap(self, runner: Runner, pattern: str) -> None:
        for name, owner, method in find_targets(runner.model, pattern):
            if name not in self._in_fp32:
                self._in_fp32.add(name)
                device = device_of(runner.model)
                put_in_fp32(self.patches, owner, method, device)


class InFp32:
    """A method of a module that runs in float32; a copy of the module has a
    copy of its own.
    """

    def __init__(self, owner: nn.Module, method: str, device: str) -> None:
        self._owner = owner
        self._method = method
        self._device = device
        self._own = vars(owner).get(method)  # somebody else's

    def __call__(self, *args: object, **kwargs: object) -> Any:
        args, kwargs = tree_map(to_fp32, (args, kwargs))
        function = self._own
        if function is None:
            kind = type(self._owner)
            function = getattr(kind, self._method).__get__(self._owner)
        with torch.autocast(self._device, enabled=False):
            return function(*args, **kwargs)


def put_in_fp32(
    patches: Patches, owner: nn.Module, method: str, device: str
) -> None:
    """Put a method in float32 until the patches are undone."""
    patches.replace(owner, method, InFp32(owner, method, device))


@contextmanager
def in_fp32(model: nn.Module, pattern: str) -> Iterator[None]:
    """Run what ``pattern`` matches in float32; see the hook for patterns."""
    patches = Patches()
    for _, owner, method in find_targets(model, pattern):
        put_in_fp32(patches, owner, method, device_of(model))
    try:
        yield
    finally:
        patches.undo()


def target_of(autopsy: Autopsy) -> str:
    """Return the pattern for the method that an autopsy blames."""
    if autopsy.method in ('', 'forward'):
        return autopsy.module
    return f'{autopsy.module}.{autopsy.method}'


def device_of(model: nn.Module) -> str:
    return next(model.parameters()).device.type


def to_fp32(leaf: Any) -> Any:
    is_half = isinstance(leaf, Tensor) and leaf.dtype in (
        torch.float16,
        torch.bfloat16,
    )
    return leaf.float() if is_half else leaf


def find_targets(model: nn.Module, pattern: str) -> List[Any]:
    """(name, owner, method) of what a pattern means."""
    modules = {
        plain_name(name): module for name, module in model.named_modules()
    }
    modules.pop('', None)
    kind, _, rest = pattern.partition(':')
    if kind == 're':
        names = [name for name in modules if re.fullmatch(rest, name)]
    elif kind == 'type':
        names = [n for n, m in modules.items() if type(m).__name__ == rest]
    else:
        names = [pattern] if pattern in modules else []
        owner, _, method = pattern.rpartition('.')
        if not names and callable(getattr(modules.get(owner), method, None)):
            return [(pattern, modules[owner], method)]
    if not names:
        near = difflib.get_close_matches(pattern, modules, n=5, cutoff=0.4)
        raise GuardConfigError(
            f'Fp32ModulesHook: {pattern!r} matches no module. '
            f'Near names: {", ".join(near or list(modules)[:5])}.'
        )
    return [(name, modules[name], 'forward') for name in names]
