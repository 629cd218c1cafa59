"""States of a run that training can go back to."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.numerics import load_plain
from mmnanguard.numerics.base.rng_state import read_rng, set_rng
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    judge_files,
    scan_file,
)
from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    trained_and_averaged,
)
from mmnanguard.numerics.checkpoints.state_copy import StateCopy
from mmnanguard.numerics.update.blame import plain_name

from .._shared.averages import ema_models
from .._shared.find_guards import find_guards, find_wrappers
from .pointers import LAST_CLEAN, read_pointer

__all__ = ['EarlierState', 'newest_clean_state', 'present_state']


class EarlierState(NamedTuple):
    """A state that training can go back to.

    Attributes:
        iter: The last iteration that it knows of; from 1, 0 is the start.
        copy: Weights, buffers, averages, optimizer states.
        rules: Of each guard: its state and its clip rule, which are frozen.
        rng: Of this rank; None if that is not known.
        path: Of the checkpoint that it is from; '' for memory.
    """

    iter: int
    copy: StateCopy
    rules: Mapping[str, Any]
    rng: Optional[Dict[str, Any]] = None
    path: str = ''

    def restore(
        self,
        runner: Runner,
        lr_factor: float,
        lr_return: float,
        with_rng: bool = False,
    ) -> None:
        """Restore the state in place.

        See :meth:`GuardState.rolled_back` for the factors.
        """
        self.copy.restore(tensors_of(runner), optimizers_of(runner))
        for name, guard in find_guards(runner).items():
            state, guard.clip_rule = self.rules[name]
            guard.state = guard.state.rolled_back(state, lr_factor, lr_return)
        if with_rng and self.rng is not None:
            set_rng(self.rng)


def present_state(runner: Runner, iteration: int) -> EarlierState:
    """Copy the current state of the run."""
    rules = {
        name: (guard.state, guard.clip_rule)
        for name, guard in find_guards(runner).items()
    }
    copy = StateCopy.of(tensors_of(runner), optimizers_of(runner))
    return EarlierState(iteration, copy, rules, read_rng())


def newest_clean_state(runner: Runner, before: int) -> Optional[EarlierState]:
    """Return the state in the newest clean checkpoint before an iteration.

    Looks in the work dir; None if there is none. Collective.
    """
    if is_sharded(runner.model):
        return None
    result: List[Any] = [None]
    if is_main_process():
        result = [find_checkpoint(runner, before)]
    broadcast_object_list(result)
    if result[0] is None:
        return None
    path, iteration = result[0]
    saved = load_plain(path)
    present = tensors_of(runner)
    tensors = {
        name: tensor for name, tensor in tensors_in(saved) if name in present
    }
    names = list(find_wrappers(runner))
    wrappers = saved['optimizer']
    if names == ['default']:
        wrappers = {'default': wrappers}
    states = {
        name: states_in(optimizer, wrappers[name]['state'])
        for name, optimizer in optimizers_of(runner).items()
    }
    rules = {
        name: guard.rules_of(wrappers[name].get('guard', {}))
        for name, guard in find_guards(runner).items()
    }
    copy = StateCopy(tensors, states)
    return EarlierState(iteration, copy, rules, path=path)


def find_checkpoint(runner: Runner, before: int) -> Any:
    """Return the path and iteration of that checkpoint, or None."""
    paths = set(Path(runner.work_dir).glob('*.pth'))
    last_clean = read_pointer(runner.work_dir, LAST_CLEAN)
    if last_clean is not None:
        paths.add(Path(last_clean))  # it may lie elsewhere
    for file in reversed(judge_files([scan_file(path) for path in paths])):
        is_older = file.iter is not None and file.iter < before
        if file.status == 'clean' and file.has_optimizer and is_older:
            return str(file.path), file.iter
    return None


def tensors_in(saved: Mapping[str, Any]) -> Iterator[Any]:
    """Yield names, as in :func:`tensors_of`, and tensors of a checkpoint."""
    trained, averaged = trained_and_averaged(
        saved['state_dict'], saved.get(EMA_KEY, {})
    )
    yield from trained.items()
    for name, tensor in averaged.items():
        yield f'average 1: {name}', tensor


def states_in(optimizer: Optimizer, saved: Mapping[int, Any]) -> List[Any]:
    """One for each parameter, in the order of the groups."""
    count = sum(len(group['params']) for group in optimizer.param_groups)
    return [dict(saved.get(index, {})) for index in range(count)]


def tensors_of(runner: Runner) -> Dict[str, Tensor]:
    """Weights, buffers and averages, by name."""
    tensors: Dict[str, Tensor] = {}
    models = [runner.model, *ema_models(runner.hooks)]
    for index, model in enumerate(models):
        for name, tensor in [
            *model.named_parameters(),
            *model.named_buffers(),
        ]:
            key = f'average {index}: {name}' if index else plain_name(name)
            tensors[key] = tensor
    return tensors


def optimizers_of(runner: Runner) -> Dict[str, Any]:
    return {
        name: wrapper.optimizer
        for name, wrapper in find_wrappers(runner).items()
    }
