"""The question whether a checkpoint was written by the same run."""

from typing import Any, Mapping, NamedTuple, Optional, Set

import numpy as np

from mmnanguard.numerics.checkpoints.saved_optimizer import (
    GUARD_KEY,
    optimizers_of,
)

__all__ = ['Lineage', 'is_earlier']

# Scalars that MMEngine logs in each iteration. Measured times differ even
# between runs with the same seed.
HISTORIES = ('train/time', 'train/loss')


class Lineage(NamedTuple):
    """The marks by which a run is recognized.

    Attributes:
        runs: The ids of the run, one or none.
        scalars: The log of the run, by the name of the scalar.
    """

    runs: Set[str]
    scalars: Mapping[str, Any]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> 'Lineage':
        """Return the marks in a loaded checkpoint."""
        states = [*optimizers_of(checkpoint.get('optimizer')).values()]
        states += (checkpoint.get(GUARD_KEY) or {}).get('guards', {}).values()
        runs = {(state.get('guard') or {}).get('run', '') for state in states}
        hub = checkpoint.get('message_hub') or {}
        return cls(runs - {''}, hub.get('log_scalars') or {})


def is_earlier(earlier: Lineage, later: Lineage) -> Optional[bool]:
    """Whether both states are of one run, and the first is the earlier one.

    Guarded runs have ids. A run that was not guarded is recognized by its
    log, which its checkpoints contain and which a resumed run continues: the
    log of the earlier state must be the beginning of the later one.

    Returns:
        None if there is neither an id nor a log on both sides.
    """
    if earlier.runs and later.runs:
        return bool(earlier.runs & later.runs)
    is_known = None
    for name in HISTORIES:
        if name not in earlier.scalars or name not in later.scalars:
            continue
        # The values and the number of values that each stands for.
        begin, _ = earlier.scalars[name].data
        values, _ = later.scalars[name].data
        if not np.array_equal(begin, values[: len(begin)], equal_nan=True):
            return False
        is_known = True
    return is_known
