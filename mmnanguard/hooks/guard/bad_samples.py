"""The samples of an event that are known to be bad."""

from contextlib import suppress
from typing import Dict, Sequence, Tuple

from mmengine.runner import Runner

from mmnanguard.core import Autopsy, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.culprit import names_a_minority
from mmnanguard.core.rows.input_row import InputRow

from .._shared.hook_arguments import DataBatch, Row
from .._shared.roles import SampleWitness
from ..events.crash import find_bad_inputs

__all__ = ['KnownBadSamples']

MAX_KNOWN = 1000  # names that a run remembers
INPUTS = 'inputs'


class KnownBadSamples:
    """Names the bad samples of an event, before it is handed out.

    A sample is known to be bad if an earlier row of this process blames it,
    if a hook that checks data or inputs has found it, or, without such a
    hook, if it has NaN or Inf in the ``inputs`` of its batch. NaN in other
    parts, such as labels, may be there on purpose.
    """

    def __init__(self) -> None:
        # A dict, because it has an order: all ranks drop the same names.
        self._blamed: Dict[str, None] = {}

    def note(self, row: Row) -> None:
        """Remember the samples that a row blames."""
        names: Sequence[str] = ()
        if row['kind'] == Autopsy.KIND:
            autopsy = Autopsy.from_row(row)
            if autopsy.phase == 'input' or names_a_minority(autopsy):
                names = autopsy.samples
        elif row['kind'] == InputRow.KIND:
            record = InputRow.from_row(row)
            # The model masks what is usual.
            if not record.usual:
                names = record.samples
        self._blamed.update(dict.fromkeys(names))
        while len(self._blamed) > MAX_KNOWN:
            del self._blamed[next(iter(self._blamed))]

    def among(
        self,
        runner: Runner,
        event: GuardEvent,
        samples: Sequence[str],
        batch: Tuple[int, DataBatch],
    ) -> Tuple[str, ...]:
        """Return those of an event's samples that are bad; syncs.

        Not collective: about the samples of this rank.

        Args:
            runner: The runner, whose hooks may know bad samples.
            event: The event.
            samples: The samples of its window on this rank.
            batch: Index and batch of the iteration.
        """
        facts = CAUSES.get(event.cause)
        if facts is None or facts.is_routine or not facts.is_of_batch:
            return ()
        known = set(self._blamed)
        hooks = [h for h in runner.hooks if isinstance(h, SampleWitness)]
        for hook in hooks:
            known.update(hook.bad_samples(event))
        if not hooks:
            known.update(bad_in_batch(*batch))
        return tuple(name for name in dict.fromkeys(samples) if name in known)


def bad_in_batch(batch_idx: int, data_batch: DataBatch) -> Tuple[str, ...]:
    """Return the samples whose inputs are not finite; syncs."""
    # A batch of another project may be anything.
    with suppress(Exception):
        return find_bad_inputs(data_batch, batch_idx).get(INPUTS, ())
    return ()
