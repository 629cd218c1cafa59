from typing import Any, Iterator, Mapping, Optional, Set

__all__ = ['dataset_parts']

# Where datasets keep those that they wrap, and pipelines their transforms.
INNER = ('dataset', 'datasets', 'pipeline', 'transforms', 'branch_pipelines')


def dataset_parts(part: Any, seen: Optional[Set[int]] = None) -> Iterator[Any]:
    """A dataset, those that it wraps, their pipelines and transforms, and the
    transforms that those hold; each once.
    """
    seen = set() if seen is None else seen
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from dataset_parts(item, seen)
    elif hasattr(part, '__dict__') and id(part) not in seen:
        seen.add(id(part))
        yield part
        for name in INNER:
            yield from dataset_parts(vars(part).get(name), seen)
