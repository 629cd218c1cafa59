from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from mmengine.dist import all_gather_object, get_world_size

__all__ = ['BadInputs', 'gather_bad_inputs']

NUM_LISTED = 100  # samples of each key and rank, in a row
NUM_SAID = 3


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

    @property
    def samples(self) -> Tuple[str, ...]:
        """Each once."""
        return unique(self.keys)

    @property
    def num_samples(self) -> int:
        return len(self.samples) + self.num_unlisted

    def say(self) -> str:
        """How many, of what, on which ranks, and the first names."""
        number = (
            '1 sample'
            if self.num_samples == 1
            else (f'{self.num_samples} samples')
        )
        said = ', '.join(self.samples[:NUM_SAID])
        more = self.num_samples - NUM_SAID
        where = ''
        if get_world_size() > 1:
            ranks = ', '.join(map(str, self.ranks))
            where = f' on rank{"s" * (len(self.ranks) > 1)} {ranks}'
        return f'{number} ({", ".join(self.keys)}){where}: {said}' + (
            f' and {more} more' if more > 0 else ''
        )

    def to_row(self) -> Dict[str, Any]:
        return {
            'ranks': self.ranks,
            'num_samples': self.num_samples,
            'samples': self.samples,
            'keys': self.keys,
        }


def gather_bad_inputs(found: Mapping[str, List[str]]) -> Optional[BadInputs]:
    """Put together what each rank has found; collective.

    Args:
        found: On this rank: names of samples, by key.

    Returns:
        The same on all ranks; None if none has found anything.
    """
    listed = {key: names[:NUM_LISTED] for key, names in found.items()}
    num_unlisted = len(unique(found)) - len(unique(listed))
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
    return tuple(dict.fromkeys(n for names in keys.values() for n in names))
