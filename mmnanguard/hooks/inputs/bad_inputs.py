"""The bad samples of all ranks."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, Dict, List, Mapping, Optional, Tuple

from mmengine.dist import all_gather_object

from mmnanguard.core.rows.input_row import InputRow

__all__ = ['BadInputs', 'gather_bad_inputs']

NUM_LISTED = 100  # samples of each key and rank, in a row


@dataclass(frozen=True)
class BadInputs:
    """The bad samples of all ranks.

    Attributes:
        ranks: That had some.
        keys: Names of samples, by key.
        num_unlisted: Samples that stand under no key: there were too many.
    """

    ranks: Tuple[int, ...]
    keys: Mapping[str, Tuple[str, ...]]
    num_unlisted: int = 0

    def record(
        self, id_: str, action: str, iter_: int, since: Optional[int] = None
    ) -> InputRow:
        """Return the row that names the samples, each once."""
        samples = unique(self.keys)
        return InputRow(
            id=id_,
            action=action,
            iter=iter_,
            since=since,
            ranks=self.ranks,
            num_samples=len(samples) + self.num_unlisted,
            samples=samples,
            keys=self.keys,
        )


def gather_bad_inputs(
    local_names: Mapping[str, List[str]],
) -> Optional[BadInputs]:
    """Put together the bad samples of all ranks; collective.

    Args:
        local_names: Names of this rank's bad samples, by key.

    Returns:
        The same on all ranks; None if no rank has bad samples.
    """
    listed = {key: names[:NUM_LISTED] for key, names in local_names.items()}
    num_unlisted = len(unique(local_names)) - len(unique(listed))
    everyone = all_gather_object((listed, num_unlisted))
    ranks = tuple(rank for rank, (keys, _) in enumerate(everyone) if keys)
    if not ranks:
        return None
    keys: Dict[str, List[str]] = {}
    for theirs, _ in everyone:
        for key, names in theirs.items():
            keys.setdefault(key, []).extend(names)
    return BadInputs(
        ranks,
        {key: tuple(dict.fromkeys(names)) for key, names in keys.items()},
        sum(num for _, num in everyone),
    )


def unique(keys: Mapping[str, Any]) -> Tuple[str, ...]:
    """Return the names of all keys, each once."""
    return tuple(dict.fromkeys(chain.from_iterable(keys.values())))
