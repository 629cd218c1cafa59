"""The hook that runs modules in float32 while the rest is autocast.

:func:`in_fp32` does so for the time of a replay, to try a remedy.
"""

import difflib
import logging
import re
from contextlib import contextmanager
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    Set,
    Tuple,
)

import torch
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.core import Action, Autopsy, GuardConfigError, GuardEvent
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow, line_of_fp32
from mmnanguard.numerics.update.blame import plain_name
from mmnanguard.registry import HOOKS

from .._shared.hook_arguments import Checkpoint, DataBatch, Outputs, Row
from .._shared.patches import Patches, PatchingHook
from .._shared.roles import ModuleCaster

__all__ = ['Fp32ModulesHook', 'in_fp32']

KEY = 'nanguard_fp32_modules'
LEAST_STREAK = 2  # rejections in a row, of different batches


@HOOKS.register_module()
class Fp32ModulesHook(PatchingHook, ModuleCaster):
    """Runs some modules in float32 while the rest is autocast.

    The inputs of these modules are cast to float32, and autocast is off
    inside them: float16 overflows at 65504, float32 at 3.4e38.

    Args:
        modules: Patterns, each of which is a module's name
            ('backbone.patch_embed'), a regex that must match a whole name
            ('re:.*dwconvs.*'), a class name ('type:DepthwiseConv'), or a
            module's method ('decode_head.loss_by_feat'), since mm heads run
            ``loss`` and not ``forward``.
        auto: Whether to add, from the next iteration on, each module that an
            autopsy found to overflow, if the autopsy has tried float32 and
            it helped. If it overflowed for at most half of the samples, the
            hook waits until a batch without them is rejected, or, with
            several ranks, the next batch. Checkpoints keep these modules.
            Needs AutopsyHook.
        max_auto_modules: Number of added modules from which on ``auto`` adds
            no more.

    ``StabilityMonitorHook`` with ``act=('fp32',)`` adds modules as well,
    before they overflow. Checkpoints keep them.

    Raises:
        GuardConfigError: At the start of training, if a pattern matches
            nothing; it lists similar names.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        modules: Sequence[str] = (),
        auto: bool = False,
        max_auto_modules: int = 8,
    ) -> None:
        super().__init__()
        # A str would pass as a sequence of one-letter patterns.
        if isinstance(modules, str):
            raise GuardConfigError(
                f'Fp32ModulesHook.modules is {modules!r}: it must be a list '
                f'such as [{modules!r}].'
            )
        self._patterns = list(modules)
        self._auto = auto
        self._max_auto_modules = max_auto_modules
        # Whether checkpoints are asked for added modules.
        self._resumes = auto
        self._added: List[str] = []
        # The modules to add, with the id of the row that advises it.
        self._due: List[Tuple[str, str]] = []
        # The last autopsy of each module that blames few samples as well.
        self._waiting: Dict[str, Autopsy] = {}
        self._in_fp32: Set[str] = set()

    @property
    def patterns(self) -> List[str]:
        """The patterns of the config and the added modules."""
        return [*self._patterns, *self._added]

    def before_train(self, runner: Runner) -> None:
        """Replace the methods of the config's and the added modules."""
        self._in_fp32 = set()
        for pattern in self._patterns:
            self._wrap(runner, pattern)
        for name in list(self._added):
            try:
                self._wrap(runner, name)
            except GuardConfigError as error:
                # The model has changed since the checkpoint was saved.
                self._added.remove(name)
                say(
                    escape(f'{error} It is left out.'),
                    logging.WARNING,
                    runner.logger,
                )
        if self._in_fp32:
            names = ', '.join(sorted(self._in_fp32))
            line = escape(f'mmnanguard: in float32 run {names}')
            say(line, logging.INFO, runner.logger)

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Note the module that an autopsy blames, if float32 repairs it."""
        if not self._auto or row['kind'] != Autopsy.KIND:
            return
        autopsy = Autopsy.from_row(row)
        if autopsy.remedy != FP32 or not autopsy.module:
            return
        # An outlier that float16 rejects would be committed in float32, with
        # its huge gradients. So the module has to overflow for others, too.
        before = self._waiting.get(autopsy.module)
        if is_of_few(autopsy) and (
            before is None or set(before.samples) & set(autopsy.samples)
        ):
            self._waiting[autopsy.module] = autopsy
        else:
            self._add_later(autopsy)

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Add the modules that wait, if other samples are rejected, too."""
        is_streak = event.consecutive_skips >= LEAST_STREAK
        is_rejected = event.action is not Action.STEP
        for module, autopsy in list(self._waiting.items()):
            # The samples of an event are those of its ranks, and all ranks
            # must agree on the module.
            is_other = get_world_size() == 1 and not (
                set(autopsy.samples) & set(event.samples)
            )
            if is_rejected and (is_streak or is_other):
                self._add_later(self._waiting.pop(module))

    def request(self, names: Sequence[str], row_id: str) -> None:
        self._due += [(name, row_id) for name in names]

    def keep_requests(self) -> None:
        self._resumes = True

    def _add_later(self, autopsy: Autopsy) -> None:
        """Add the module that an autopsy blames, if there is room."""
        num_modules = len(self._added) + len(self._due)
        if num_modules < self._max_auto_modules:
            self._due.append((target_of(autopsy), autopsy.id))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Add the modules that were named in this iteration.

        They are added at its end, since other hooks may still replay the
        window as it was.
        """
        due, self._due = self._due, []
        for name, row_id in due:
            # Two rows of an iteration may name the same module.
            if name not in self._in_fp32:
                self._add(runner, name, row_id)

    def _add(self, runner: Runner, name: str, row_id: str) -> None:
        """Run a module in float32 from now on, and report the remedy."""
        self._wrap(runner, name)
        self._added.append(name)
        # The line that makes the remedy permanent, to be pasted into a config.
        config = line_of_fp32(self.patterns)
        remedy = RemedyRow(row_id, FP32, name, config)
        say(remedy.line(), logging.WARNING, runner.logger)
        runner.call_hook('after_guard_row', row=remedy.to_row())

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Save the names of the added modules."""
        if self._added:
            checkpoint[KEY] = list(self._added)

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Load the names of the added modules of a resumed run."""
        # ``load_from`` starts another run, which may not need the remedies.
        if self._resumes and runner._resume:
            self._added = list(checkpoint.get(KEY, []))

    def _wrap(self, runner: Runner, pattern: str) -> None:
        """Run all matches of a pattern in float32 until training ends."""
        for target in find_targets(runner.model, pattern):
            # Several patterns may match a module; it is replaced once.
            if target.name not in self._in_fp32:
                self._in_fp32.add(target.name)
                put_in_fp32(self.patches, target, device_of(runner.model))


class Target(NamedTuple):
    """A method of a module.

    Attributes:
        name: The module's name in the model, and the method unless it is
            ``forward``.
        owner: The module.
        method: The name of the method.
    """

    name: str
    owner: nn.Module
    method: str


class InFp32:
    """A replacement of a module's method that runs the method in float32.

    A copy of the module gets a copy of this object that refers to the copied
    module. A closure would refer to the original: deepcopy shares functions.

    Args:
        owner: The module.
        method: The name of the method.
        device: The type of the device, such as 'cuda'.
    """

    def __init__(self, owner: nn.Module, method: str, device: str) -> None:
        self._owner = owner
        self._method = method
        self._device = device
        # Somebody else may have replaced the method of this module already.
        self._replaced = vars(owner).get(method)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        args, kwargs = tree_map(to_fp32, (args, kwargs))
        function = self._replaced
        if function is None:
            # Taken from the class, since the module's own attribute is this
            # object.
            kind = type(self._owner)
            function = getattr(kind, self._method).__get__(self._owner)
        with torch.autocast(self._device, enabled=False):
            return function(*args, **kwargs)


def put_in_fp32(patches: Patches, target: Target, device: str) -> None:
    """Run a method in float32 until the patches are undone."""
    _, owner, method = target
    patches.replace(owner, method, InFp32(owner, method, device))


@contextmanager
def in_fp32(model: nn.Module, pattern: str) -> Iterator[None]:
    """Run the matches of ``pattern`` in float32; see the hook for patterns."""
    patches = Patches()
    for target in find_targets(model, pattern):
        put_in_fp32(patches, target, device_of(model))
    try:
        yield
    finally:
        patches.undo()


def is_of_few(autopsy: Autopsy) -> bool:
    """Whether an autopsy blames samples, and at most half of the window's."""
    num_blamed = len(autopsy.samples)
    return 0 < 2 * num_blamed <= (autopsy.num_samples or 2 * num_blamed)


def target_of(autopsy: Autopsy) -> str:
    """Return the pattern for the method that an autopsy blames."""
    if autopsy.method in ('', 'forward'):
        return autopsy.module
    return f'{autopsy.module}.{autopsy.method}'


def device_of(model: nn.Module) -> str:
    """Return the type of the device that a model is on."""
    return next(model.parameters()).device.type


def to_fp32(leaf: object) -> object:
    """Cast a tensor in half precision; return anything else unchanged.

    Tensors in float64 and of integers keep their dtype.
    """
    if isinstance(leaf, Tensor) and leaf.dtype in (
        torch.float16,
        torch.bfloat16,
    ):
        return leaf.float()
    return leaf


def find_targets(model: nn.Module, pattern: str) -> List[Target]:
    """Return the methods that a pattern matches.

    Raises:
        GuardConfigError: If it matches nothing.
    """
    modules = {}
    for name, module in model.named_modules():
        # `plain_name` removes the parts that DDP and torch.compile insert.
        modules[plain_name(name)] = module
    # The model itself is no target: a user who wants it in float32 trains
    # without autocast.
    modules.pop('', None)
    names = list(matching_names(modules, pattern))
    if names:
        return [Target(name, modules[name], 'forward') for name in names]
    # A module's name comes first: a method may have the name of a child.
    owner, _, method = pattern.rpartition('.')
    if owner in modules and callable(getattr(modules[owner], method, None)):
        return [Target(pattern, modules[owner], method)]
    near = difflib.get_close_matches(pattern, modules, n=5, cutoff=0.4)
    raise GuardConfigError(
        f'Fp32ModulesHook: {pattern!r} matches no module. '
        f'Near names: {", ".join(near or list(modules)[:5])}.'
    )


def matching_names(
    modules: Dict[str, nn.Module], pattern: str
) -> Iterable[str]:
    """Return the names of the modules that a pattern matches."""
    kind, _, rest = pattern.partition(':')
    if kind == 're':
        return filter(re.compile(rest).fullmatch, modules)
    if kind == 'type':
        # By name, because a pattern in a config is text.
        return [n for n, m in modules.items() if type(m).__name__ == rest]
    return {pattern} & modules.keys()
