"""The repair of buffers and averages alone, without a rollback."""

import logging
from contextlib import suppress
from typing import List, Optional

from mmengine.dist import all_gather_object
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard._support.console_line import fit, named
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
    if not set(audit.where) <= {'buffers', 'ema'}:
        return False
    names = names_in_state(runner, audit)
    part = None
    if kept is not None and isinstance(kept.copy, StateCopy) and names:
        with suppress(StateMismatchError):
            copy = kept.copy.of_names(names)
            part = kept._replace(copy=copy, hook_states=())
    # A rank that restored alone would wait for the other ranks.
    if not all(all_gather_object(part is not None)):
        return False
    assert part is not None
    if not restore_together(runner, part, present_state(runner, audit.iter)):
        return False
    first, *others = names
    line = fit(
        named(
            f"Iter {audit.iter}: '{{}}'{and_more(len(others))} put back as "
            f'after iteration {part.iter}',
            first,
        ),
        'look for the code that spoils it (hooks, EMA swaps, .data)',
        ['weights stay as they are, because no update was rejected', ''],
    )
    say(line, logging.WARNING, runner.logger)
    return True


def names_in_state(runner: Runner, audit: Audit) -> List[str]:
    """Return the names that the bad tensors have in a kept state."""
    wanted = set(audit.names)
    names = []
    for name in tensors_of(runner):
        average, _, source = name.rpartition(': ')
        places = ['ema' if average else 'buffers']
        # The teacher of a MeanTeacherHook is a part of the model.
        if name.startswith('teacher.'):
            places.append('ema')
        if any((place, plain_name(source)) in wanted for place in places):
            names.append(name)
    return names
