"""How the values of a field are distributed over a dataset."""

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

__all__ = ['BINS', 'MAX_POINTS', 'distribution', 'summary']

MAX_POINTS = 32  # values that are kept of one sample
BINS = 50
MAX_WIDTH = 1e300  # of what matplotlib can draw


def summary(arrays: Sequence[np.ndarray]) -> Dict[str, Any]:
    """What is kept of one sample's values, in plain numbers.

    ``points`` are all finite values if there are at most ``MAX_POINTS``, else
    that many of them at even distances in their order.

    Args:
        arrays: All of them belong to the field; complex numbers count by
            their absolute values.
    """
    flat = [np.abs(a) if a.dtype.kind == 'c' else a for a in arrays]
    values = np.concatenate(
        [np.zeros(0), *(each.astype(np.float64).ravel() for each in flat)]
    )
    finite = values[np.isfinite(values)]
    count = len(finite)
    row: Dict[str, Any] = {'count': count, 'nonfinite': len(values) - count}
    if not count:
        return row
    points = finite
    if count > MAX_POINTS:
        ranks = (np.arange(MAX_POINTS) + 0.5) * count / MAX_POINTS
        places = ranks.astype(int)
        points = np.partition(finite, places)[places]
    with np.errstate(over='ignore', invalid='ignore'):
        mean = (finite / count).sum()  # the sum itself may overflow
        squares = np.square(finite - mean).sum()
    row.update(
        mean=float(mean),
        squares=float(squares),
        min=float(finite.min()),
        max=float(finite.max()),
        points=points.tolist(),
    )
    return row


def distribution(
    summaries: Mapping[int, Optional[Mapping[str, Any]]],
) -> Dict[str, Any]:
    """Of a field over all samples.

    Count, mean, standard deviation (divided by the count), min and max are
    those of every finite value. Quartiles and histogram are exact where no
    sample had more than ``MAX_POINTS`` values ('is_exact'); else the share of
    values below each of them is right to 1 in ``2 * MAX_POINTS``. A quartile
    is the least value that has such a share at or below it. There is no
    histogram where floats are too few or too far apart for its bins.

    Args:
        summaries: Of each sample, by its index; None where it has no such
            field.
    """
    parts = [part for part in summaries.values() if part is not None]
    told: Dict[str, Any] = {
        'count': sum(part['count'] for part in parts),
        'nonfinite': sum(part['nonfinite'] for part in parts),
        'missing': len(summaries) - len(parts),
    }
    if not told['count']:
        return told
    full = {i: part for i, part in summaries.items() if part and part['count']}
    rows = list(full.values())
    counts, means, squares = (
        np.array([float(row[key]) for row in rows])  # JSON's 'inf' is a text
        for key in ('count', 'mean', 'squares')
    )
    with np.errstate(over='ignore', invalid='ignore'):
        mean = (counts / counts.sum() * means).sum()
        squares = squares + counts * np.square(means - mean)
        std = np.sqrt(squares.sum() / counts.sum())
    lowest = min(full, key=lambda index: full[index]['min'])
    highest = max(full, key=lambda index: full[index]['max'])
    low, high = full[lowest]['min'], full[highest]['max']
    kept = np.array([len(row['points']) for row in rows])
    points = np.concatenate([row['points'] for row in rows])
    weights = np.repeat(counts / kept, kept)
    told.update(
        mean=float(mean),
        std=float(std),
        min=low,
        max=high,
        min_sample=lowest,
        max_sample=highest,
        is_exact=bool((counts == kept).all()),
        quartiles=quantiles(points, weights, (0.25, 0.5, 0.75)),
    )
    if high - low > MAX_WIDTH:
        return told
    try:
        edges = np.histogram_bin_edges(points, BINS, (low, high))
    except ValueError:  # too few floats from low to high
        return told
    if not (np.diff(edges) > 0).all():  # the same, in numpy before 2
        return told
    bars, edges = np.histogram(points, BINS, (low, high), weights=weights)
    told['histogram'] = dict(edges=edges.tolist(), counts=bars.tolist())
    return told


def quantiles(
    points: np.ndarray, weights: np.ndarray, shares: Sequence[float]
) -> List[float]:
    order = np.argsort(points, kind='stable')
    total = np.cumsum(weights[order])
    places = np.searchsorted(total, np.asarray(shares) * total[-1])
    return points[order][places].tolist()
