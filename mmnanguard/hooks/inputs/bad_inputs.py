"""The bad samples of all ranks."""

from dataclasses import dataclass
from itertools import chain
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

from mmengine.dist import all_gather_object

from mmnanguard.core.rows.input_row import InputRow

__all__ = ['BadInputs', 'gather_bad_inputs']

# Largest number of samples that a rank lists for a key. With 'sanitize' all
# samples of an interval can be bad; the row must stay readable, and the ranks
# must exchange it quickly.
NUM_LISTED = 100


@dataclass(frozen=True)
class BadInputs:
    """The bad samples of all ranks.

    Attributes:
        ranks: Ranks that had bad samples.
        keys: Names of the bad samples, by key of the bad part.
        num_unlisted: Number of bad samples whose names were left out, because
            there were too many.
    """

    ranks: Tuple[int, ...]
    keys: Mapping[str, Tuple[str, ...]]
    num_unlisted: int = 0

    def record(
        self,
        id_: str,
        action: str,
        iter_: int,
        since: Optional[int] = None,
        usual: Tuple[str, ...] = (),
    ) -> InputRow:
        """Return the row that names each sample once.

        Args:
            id_: Id of the event, or of the report of 'sanitize'.
            action: Action of ``InputGuardHook``.
            iter_: Iteration, from 1; for 'sanitize' the last of the interval.
            since: First iteration of the interval; None except for
                'sanitize'.
            usual: Keys that are not finite in committed updates, too.
        """
        samples = unique(chain.from_iterable(self.keys.values()))
        return InputRow(
            id=id_,
            action=action,
            iter=iter_,
            since=since,
            ranks=self.ranks,
            num_samples=len(samples) + self.num_unlisted,
            samples=samples,
            keys=self.keys,
            usual=usual,
        )


def gather_bad_inputs(
    local_names: Mapping[str, List[str]],
) -> Optional[BadInputs]:
    """Gather the bad samples of all ranks; collective.

    Args:
        local_names: Names of this rank's bad samples, by key.

    Returns:
        The same result on all ranks; None if no rank has bad samples.
    """
    listed = {key: names[:NUM_LISTED] for key, names in local_names.items()}
    # A sample may be bad at several keys, and counts once.
    samples = unique(chain.from_iterable(local_names.values()))
    listed_samples = unique(chain.from_iterable(listed.values()))
    num_unlisted = len(samples) - len(listed_samples)
    ranks: List[int] = []
    names_by_key: Dict[str, List[str]] = {}
    total_unlisted = 0
    gathered = all_gather_object((listed, num_unlisted))
    for rank, (rank_listed, rank_unlisted) in enumerate(gathered):
        if rank_listed:
            ranks.append(rank)
        total_unlisted += rank_unlisted
        for key, names in rank_listed.items():
            names_by_key.setdefault(key, []).extend(names)
    if not ranks:
        return None
    # Samplers repeat samples to fill the last batch, so two ranks may have
    # the same sample.
    keys = {key: unique(names) for key, names in names_by_key.items()}
    return BadInputs(tuple(ranks), keys, total_unlisted)


def unique(names: Iterable[str]) -> Tuple[str, ...]:
    """Return each name once, in the order of first occurrence."""
    # A set has another order in each process.
    return tuple(dict.fromkeys(names))
