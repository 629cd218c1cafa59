"""The parts of a dataset: wrapped datasets, pipelines and transforms."""

from typing import Any, Iterator, Mapping, Optional, Set

__all__ = ['dataset_parts']

# The attributes in which datasets keep the datasets that they wrap, and
# pipelines their transforms.
INNER = ('dataset', 'datasets', 'pipeline', 'transforms', 'branch_pipelines')


def dataset_parts(
    part: object, seen: Optional[Set[int]] = None
) -> Iterator[Any]:
    """Yield all parts of a dataset, without repetition.

    Parts are the dataset itself, the datasets that it wraps, their pipelines
    and transforms, and the transforms within transforms.

    Args:
        part: A dataset or a part of one.
        seen: The ids of parts that were yielded already.
    """
    if seen is None:
        seen = set()
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from dataset_parts(item, seen)
    # An object without __dict__ (a string, a number) holds no other part. Ids
    # are compared, because a dataset may define == or have no hash.
    elif hasattr(part, '__dict__') and id(part) not in seen:
        seen.add(id(part))
        yield part
        for name in INNER:
            # Not getattr: a wrapper may pass unknown names on to the dataset
            # inside, or load data in a property.
            yield from dataset_parts(vars(part).get(name), seen)
