"""The state of this run in the newest clean checkpoint of its work dir."""

import logging
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Tuple

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    is_main_process,
)
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard._console import say
from mmnanguard._support.console_line import wrap
from mmnanguard._support.escape import escape
from mmnanguard.numerics import load_plain
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.numerics.checkpoints.find_clean import find_newest_clean
from mmnanguard.numerics.checkpoints.optimizer_copy import owned_keys
from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    trained_and_averaged,
)
from mmnanguard.numerics.checkpoints.saved_optimizer import optimizers_of
from mmnanguard.numerics.checkpoints.state_copy import (
    Place,
    StateMismatchError,
)

from .._shared.find_guards import find_guards
from .._shared.hook_arguments import Checkpoint
from .earlier_state import (
    AVERAGE,
    EarlierState,
    GuardRules,
    Optimizers,
    Tensors,
    scheduled_keys,
    tensors_of,
)
from .earlier_state import optimizers_of as present_optimizers
from .lineage import Lineage, is_earlier
from .pointers import LAST_CLEAN, read_pointer

__all__ = ['newest_clean_state']


class SavedState:
    """The tensors and optimizers of a loaded checkpoint.

    Args:
        checkpoint: The content of the file.
        scheduled: The keys of ``param_groups`` that schedulers own, by the
            name of the optimizer. They are not restored.
    """

    def __init__(
        self, checkpoint: Checkpoint, scheduled: Mapping[str, Collection[str]]
    ) -> None:
        self._scheduled = scheduled
        # EMAHook exchanges weights and averages before MMEngine saves them.
        self._trained, averaged = trained_and_averaged(
            checkpoint['state_dict'], checkpoint.get(EMA_KEY, {})
        )
        self._averages: Dict[str, Tensor] = {}
        # Only the first EMAHook's averages are in a checkpoint.
        for name, tensor in averaged.items():
            self._averages[AVERAGE(1) + name] = tensor
        self.optimizers = saved_by_name(checkpoint, scheduled)

    def check(self, tensors: Tensors, optimizers: Optimizers) -> None:
        """Check that the checkpoint is of the same model and optimizers.

        Raises:
            StateMismatchError: If a parameter is missing on either side or
                has another shape, or an optimizer has other groups.
        """
        problems = [
            f"the run has no '{name}'"
            for name in self._trained
            if name not in tensors
        ]
        for name, now in tensors.items():
            if not isinstance(now, nn.Parameter) or name.startswith('average'):
                continue
            saved = self._trained.get(name)
            if saved is None:
                problems.append(f"it has no '{name}'")
            elif saved.shape != now.shape:
                problems.append(
                    f"its '{name}' is {tuple(saved.shape)}, not "
                    f'{tuple(now.shape)}'
                )
        for name, optimizer in optimizers.items():
            saved_groups = self.optimizers[name].get('param_groups')
            sizes = list(map(num_params, optimizer.param_groups))
            # A wrapped optimizer may save another format.
            if saved_groups and list(map(num_params, saved_groups)) != sizes:
                problems.append(f"its optimizer '{name}' has other groups")
        if problems:
            raise StateMismatchError('; '.join(problems[:3]))

    @torch.no_grad()
    def restore(
        self,
        tensors: Tensors,
        optimizers: Optimizers,
        places: Optional[Mapping[str, Place]] = None,
    ) -> None:
        """Write the checkpoint into the present state.

        Raises:
            StateMismatchError: See :meth:`check`.
        """
        self.check(tensors, optimizers)
        for name, saved in {**self._trained, **self._averages}.items():
            now = tensors.get(name)
            if now is not None and now.shape == saved.shape:
                now.copy_(saved)
            # The checkpoint may be from an attempt with an EMAHook, and this
            # attempt may have none.
            elif name in tensors and places is not None and name in places:
                owner, key = places[name]
                device = next(owner.parameters(), saved).device
                owner._buffers[key] = saved.to(device, copy=True)
        for name, optimizer in optimizers.items():
            load_optimizer(
                optimizer, self.optimizers[name], self._scheduled[name]
            )


def load_optimizer(
    optimizer: Optimizer, saved: Mapping[str, Any], scheduled: Collection[str]
) -> None:
    """Load the saved state of an optimizer, except for scheduled values."""
    owned: List[Dict[str, object]] = []
    for group in optimizer.param_groups:
        # Since the file was written, LrFactorHook may have changed the rate.
        keys = owned_keys(group, {'lr', *scheduled})
        owned.append({key: group[key] for key in keys if key in group})
    # Its own method, because it may save more than PyTorch's optimizers do.
    optimizer.load_state_dict(dict(saved))
    for group, values in zip(optimizer.param_groups, owned):
        group.update(values)


def newest_clean_state(
    runner: Runner, before: int, after: int = -1
) -> Optional[EarlierState]:
    """Return the state in the newest clean checkpoint between iterations.

    Collective. Searches the work dir for checkpoints that this run has
    written and that fit its model; returns None if there is none.

    Args:
        runner: The runner of the training.
        before: Only checkpoints of earlier iterations count.
        after: Only checkpoints of later iterations count.
    """
    # A checkpoint holds whole tensors, a sharded model parts of them.
    if is_sharded(runner.model):
        return None
    # All ranks must restore one file, and a scan is slow, so rank 0 chooses.
    message: List[Optional[Tuple[str, int]]] = [None]
    if is_main_process():
        message = [find_checkpoint(runner, before, after)]
    broadcast_object_list(message)
    if message[0] is None:
        return None
    state = None
    try:
        state = state_in(*message[0], runner)
    except Exception:  # a file that another rank can read may be out of reach
        runner.logger.exception(
            wrap(f'mmnanguard: cannot read {message[0][0]}')
        )
    # One rank alone must not go back.
    if not all(all_gather_object(state is not None)):
        return None
    return state


def state_in(path: str, iteration: int, runner: Runner) -> EarlierState:
    """Read the state of this run from a checkpoint."""
    state = SavedState(load_plain(path), scheduled_keys(runner))
    rules: Dict[str, GuardRules] = {}
    for name, guard in find_guards(runner).items():
        rules[name] = guard.rules_of(state.optimizers[name].get('guard', {}))
    # Without random state: MMEngine saves none, and save_rng may be off.
    return EarlierState(iteration, state, rules, path=path)


def find_checkpoint(
    runner: Runner, before: int, after: int
) -> Optional[Tuple[str, int]]:
    """Return path and iteration of the newest clean checkpoint, or None.

    Only checkpoints of iterations between the two count.
    """
    paths = set(Path(runner.work_dir).glob('*.pth'))
    last_clean = read_pointer(runner.work_dir, LAST_CLEAN)
    # CheckpointHook(out_dir=...) writes outside of the work dir.
    if last_clean is not None:
        paths.add(Path(last_clean))
    runs = {guard.run for guard in find_guards(runner).values()}
    present = Lineage(runs, runner.message_hub.log_scalars)
    scheduled = scheduled_keys(runner)
    tensors, optimizers = tensors_of(runner), present_optimizers(runner)

    def is_wanted(path: Path, checkpoint: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is of this run and of that time."""
        if not after < checkpoint['meta']['iter'] < before:
            return False
        why = ''
        if is_earlier(Lineage.of(checkpoint), present) is not True:
            why = 'another run has written it'
        else:
            try:
                state = SavedState(dict(checkpoint), scheduled)
                state.check(tensors, optimizers)
            except (StateMismatchError, KeyError) as error:
                why = str(error)
        if why:
            line = escape(f'{path} is passed over: {why}')
            say(f'mmnanguard: {line}', logging.WARNING, runner.logger)
        return not why

    file = find_newest_clean(paths, is_wanted)
    if file is None or file.iter is None:
        return None
    return str(file.path), file.iter


def saved_by_name(
    checkpoint: Mapping[str, Any], names: Collection[str]
) -> Dict[str, Mapping[str, Any]]:
    """Return the saved optimizers of a checkpoint by name."""
    saved = checkpoint['optimizer']
    # MMEngine saves a lone optimizer without a name.
    if list(names) == ['default']:
        return {'default': saved}
    return dict(optimizers_of(saved))


def num_params(group: Mapping[str, Any]) -> int:
    """Return the number of parameters of a group."""
    return len(group['params'])
