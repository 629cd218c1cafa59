"""The repair of buffers and averages alone, without a rollback."""

from typing import List, Optional

from mmengine.runner import Runner

from mmnanguard.core.rows.phrases import and_more
from mmnanguard.numerics.checkpoints.state_copy import (
    StateCopy,
    StateMismatchError,
)
from mmnanguard.numerics.update.blame import plain_name

from .._shared.audit import Audit
from .earlier_state import (
    EarlierState,
    present_state,
    restore_together,
    tensors_of,
)

__all__ = ['put_back']


def put_back(
    runner: Runner, audit: Audit, kept: Optional[EarlierState]
) -> bool:
    """Restore bad buffers and averages from a kept state. Collective.

    Weights and optimizers stay as they are.

    Args:
        runner: The runner of the training, whose updates are sound.
        audit: The audit, which is equal on all ranks.
        kept: The newest kept state.

    Returns:
        Whether they were restored. False if weights or optimizers are bad as
        well, or if the kept state has no such tensors.
    """
    is_aside = set(audit.where) <= {'buffers', 'ema'}
    if not is_aside or kept is None or not isinstance(kept.copy, StateCopy):
        return False
    names = names_in_state(runner, audit)
    if not names:
        return False
    try:
        copy = kept.copy.of_names(names)
    except StateMismatchError:
        return False
    part = kept._replace(copy=copy, hook_states=())
    if not restore_together(runner, part, present_state(runner, audit.iter)):
        return False
    first, *others = names
    runner.logger.warning(
        f"Iter {audit.iter}: '{first}'{and_more(len(others))} put back as "
        f'after iteration {kept.iter}; weights stay as they are, because no '
        'update was rejected. Look for the code that spoils it (hooks, EMA '
        'swaps, .data)'
    )
    return True


def names_in_state(runner: Runner, audit: Audit) -> List[str]:
    """Return the names that the bad tensors have in a kept state."""
    wanted = set(audit.names)
    names = []
    for name in tensors_of(runner):
        # An average has a prefix, which the teacher of a MeanTeacherHook, a
        # part of the model, has not.
        average, _, source = name.rpartition(': ')
        is_average = average or name.startswith('teacher.')
        place = 'ema' if is_average else 'buffers'
        if (place, plain_name(source)) in wanted:
            names.append(name)
    return names
