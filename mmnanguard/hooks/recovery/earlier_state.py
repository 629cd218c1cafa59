"""States of a run that training can go back to."""

from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.core import ClipRule, GuardState
from mmnanguard.numerics import load_plain
from mmnanguard.numerics.base.rng_state import RngState, read_rng, set_rng
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    judge_files,
    scan_file,
)
from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    trained_and_averaged,
)
from mmnanguard.numerics.checkpoints.state_copy import ParamState, StateCopy
from mmnanguard.numerics.update.blame import plain_name

from .._shared.averages import ema_models
from .._shared.find_guards import find_guards, find_wrappers
from .._shared.hook_arguments import Checkpoint
from .kept_state import named_tensors
from .pointers import LAST_CLEAN, read_pointer

__all__ = ['EarlierState', 'newest_clean_state', 'present_state']

# A guard's statistics and the memory of its clip rule. Both are frozen, so
# they are kept without a copy.
GuardRules = Tuple[GuardState, ClipRule]


class EarlierState(NamedTuple):
    """A state that training can go back to.

    Attributes:
        iter: The last iteration that the state contains, from 1; 0 is the
            start of training.
        copy: Weights, buffers, averages and optimizer states.
        rules: The state and clip rule of each guard, by optimizer.
        rng: The random state of this rank; None if it is not known.
        path: The checkpoint that the state was read from; '' for a state in
            memory.
    """

    iter: int
    copy: StateCopy
    rules: Mapping[str, GuardRules]
    rng: Optional[RngState] = None
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
            # Only statistics are restored. Counters go on, because the
            # rejected updates did happen and max_rollbacks has to be reached.
            guard.state = guard.state.rolled_back(state, lr_factor, lr_return)
        if with_rng and self.rng is not None:
            set_rng(self.rng)


def present_state(runner: Runner, iteration: int) -> EarlierState:
    """Copy the current state of the run."""
    rules: Dict[str, GuardRules] = {}
    for name, guard in find_guards(runner).items():
        rules[name] = (guard.state, guard.clip_rule)
    copy = StateCopy.of(tensors_of(runner), optimizers_of(runner))
    return EarlierState(iteration, copy, rules, read_rng())


def newest_clean_state(runner: Runner, before: int) -> Optional[EarlierState]:
    """Return the state in the newest clean checkpoint before an iteration.

    Collective. Searches the work dir; returns None if there is none.
    """
    # A checkpoint holds whole tensors, a sharded model parts of them.
    if is_sharded(runner.model):
        return None
    # All ranks must restore one file, and a scan is slow, so rank 0 chooses.
    message: List[Optional[Tuple[str, int]]] = [None]
    if is_main_process():
        message = [find_checkpoint(runner, before)]
    broadcast_object_list(message)
    if message[0] is None:
        return None
    path, iteration = message[0]
    return state_in(path, iteration, runner)


def state_in(path: str, iteration: int, runner: Runner) -> EarlierState:
    """Read the state of this run from a checkpoint."""
    saved: Checkpoint = load_plain(path)
    present = tensors_of(runner)
    tensors = {}
    # The checkpoint may be from an attempt with an EMAHook, and this attempt
    # may have none.
    for name, tensor in tensors_in(saved):
        if name in present:
            tensors[name] = tensor
    wrappers = saved['optimizer']
    # MMEngine saves a lone optimizer without a name.
    if list(find_wrappers(runner)) == ['default']:
        wrappers = {'default': wrappers}
    states: Dict[str, List[ParamState]] = {}
    for name, optimizer in optimizers_of(runner).items():
        states[name] = states_in(optimizer, wrappers[name]['state'])
    rules: Dict[str, GuardRules] = {}
    for name, guard in find_guards(runner).items():
        rules[name] = guard.rules_of(wrappers[name].get('guard', {}))
    # Without random state: MMEngine saves none, and save_rng may be off.
    copy = StateCopy(tensors, states)
    return EarlierState(iteration, copy, rules, path=path)


def find_checkpoint(runner: Runner, before: int) -> Optional[Tuple[str, int]]:
    """Return path and iteration of the newest clean checkpoint, or None.

    Only checkpoints of iterations before ``before`` count.
    """
    paths = set(Path(runner.work_dir).glob('*.pth'))
    last_clean = read_pointer(runner.work_dir, LAST_CLEAN)
    # CheckpointHook(out_dir=...) writes outside of the work dir.
    if last_clean is not None:
        paths.add(Path(last_clean))
    # judge_files sorts them, oldest first.
    for file in reversed(judge_files(list(map(scan_file, paths)))):
        # A published or best checkpoint may lack the optimizer's state.
        if file.iter is None or not file.has_optimizer:
            continue
        if file.status == 'clean' and file.iter < before:
            return str(file.path), file.iter
    return None


def tensors_in(saved: Mapping[str, Any]) -> Iterator[Tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint, named as in :func:`tensors_of`."""
    # EMAHook exchanges weights and averages before MMEngine saves them.
    trained, averaged = trained_and_averaged(
        saved['state_dict'], saved.get(EMA_KEY, {})
    )
    yield from trained.items()
    # Only the first EMAHook's averages are in a checkpoint.
    for name, tensor in averaged.items():
        yield f'average 1: {name}', tensor


def states_in(
    optimizer: Optimizer, saved: Mapping[int, ParamState]
) -> List[ParamState]:
    """Return the saved state of each parameter, in the order of the groups."""
    # Optimizer.state_dict numbers parameters in this order, and leaves out
    # parameters that have never had a gradient.
    states: List[ParamState] = []
    for group in optimizer.param_groups:
        for _ in group['params']:
            states.append(dict(saved.get(len(states), {})))
    return states


def tensors_of(runner: Runner) -> Dict[str, Tensor]:
    """Return weights, buffers and averages of a run by name."""
    tensors = {}
    for name, tensor in named_tensors(runner.model):
        tensors[plain_name(name)] = tensor
    for index, model in enumerate(ema_models(runner.hooks), 1):
        # An average keeps the prefix 'module.' of its names, as checkpoints
        # do.
        for name, tensor in named_tensors(model):
            tensors[f'average {index}: {name}'] = tensor
    return tensors


def optimizers_of(runner: Runner) -> Dict[str, Optimizer]:
    """Return the optimizers of a run by name."""
    optimizers = {}
    for name, wrapper in find_wrappers(runner).items():
        optimizers[name] = wrapper.optimizer
    return optimizers
