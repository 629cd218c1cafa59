"""The distribution of a field's values over a dataset."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

__all__ = [
    'BINS',
    'MAX_POINTS',
    'Distribution',
    'Summary',
    'distribution',
    'summary',
]

# The dicts of numbers that summary() and distribution() return, for JSON.
Summary = Dict[str, Any]
Distribution = Dict[str, Any]

MAX_POINTS = 32  # values of a sample that its summary keeps
BINS = 50  # bars of a histogram
MAX_WIDTH = 1e300  # the widest range that matplotlib can draw


def summary(arrays: Sequence[np.ndarray]) -> Summary:
    """Summarize the values of a sample's field, in plain numbers.

    ``points`` are all finite values if there are at most ``MAX_POINTS``;
    otherwise that many of them, at even distances in sorted order.

    Args:
        arrays: The arrays of the field, of any shapes. Complex numbers count
            by their absolute values.
    """
    # concatenate() refuses an empty list.
    flat = [np.zeros(0)]
    for array in arrays:
        # float64 would drop the imaginary part of complex numbers.
        real = np.abs(array) if array.dtype.kind == 'c' else array
        flat.append(real.astype(np.float64).ravel())
    values = np.concatenate(flat)
    finite = values[np.isfinite(values)]
    count = len(finite)
    row: Summary = {'count': count, 'nonfinite': len(values) - count}
    if not count:
        return row
    points = finite
    if count > MAX_POINTS:
        ranks = (np.arange(MAX_POINTS) + 0.5) * count / MAX_POINTS
        places = ranks.astype(int)
        # A full sort of a large image would take several times as long.
        points = np.partition(finite, places)[places]
    with np.errstate(over='ignore', invalid='ignore'):
        # The sum of the values themselves may overflow.
        mean = (finite / count).sum()
        squares = np.square(finite - mean).sum()
    row.update(
        mean=float(mean),
        squares=float(squares),
        min=float(finite.min()),
        max=float(finite.max()),
        points=points.tolist(),
    )
    return row


def distribution(summaries: Mapping[int, Optional[Summary]]) -> Distribution:
    """Return the distribution of a field over all samples.

    Count, mean, standard deviation (divided by the count), min and max are
    computed from all finite values. Quartiles and histogram are exact if no
    sample has more than ``MAX_POINTS`` values ('is_exact'); otherwise the
    share of values below them is right to 1 in ``2 * MAX_POINTS``. A quartile
    is the least value that has such a share at or below it. There is no
    histogram if there are too few floats, or too many, between min and max.

    Args:
        summaries: The summary of each sample, by the sample's index; None
            for a sample without the field.
    """
    parts = [part for part in summaries.values() if part is not None]
    result: Distribution = {
        'count': total(parts, 'count'),
        'nonfinite': total(parts, 'nonfinite'),
        'missing': len(summaries) - len(parts),
    }
    if not result['count']:
        return result
    # A sample without finite values has neither a minimum nor points.
    full = {}
    for index, part in summaries.items():
        if part and part['count']:
            full[index] = part
    rows = list(full.values())
    lowest = min(full, key=lambda index: full[index]['min'])
    highest = max(full, key=lambda index: full[index]['max'])
    low, high = full[lowest]['min'], full[highest]['max']
    # Each kept point stands for as many values as its sample has per point.
    counts = column(rows, 'count')
    samples = [row['points'] for row in rows]
    kept = np.array(list(map(len, samples)))
    points = np.concatenate(samples)
    weights = np.repeat(counts / kept, kept)
    mean, std = moments(rows)
    result.update(
        mean=mean,
        std=std,
        min=low,
        max=high,
        min_sample=lowest,
        max_sample=highest,
        is_exact=bool((counts == kept).all()),
        quartiles=quantiles(points, weights, (0.25, 0.5, 0.75)),
    )
    result.update(histogram(points, weights, low, high))
    return result


def total(rows: Sequence[Summary], key: str) -> int:
    """Return the sum of a key over summaries; an int, for JSON."""
    return sum(row[key] for row in rows)


def moments(rows: Sequence[Summary]) -> Tuple[float, float]:
    """Return mean and standard deviation of the values of all samples.

    The squares around the mean of each sample are combined: squares around 0
    would lose all digits if the mean is far from 0.
    """
    counts = column(rows, 'count')
    means = column(rows, 'mean')
    squares = column(rows, 'squares')
    # Squares of the largest floats overflow to Inf, which is then the result.
    with np.errstate(over='ignore', invalid='ignore'):
        mean = (counts / counts.sum() * means).sum()
        squares = squares + counts * np.square(means - mean)
        std = np.sqrt(squares.sum() / counts.sum())
    return float(mean), float(std)


def histogram(
    points: np.ndarray, weights: np.ndarray, low: float, high: float
) -> Distribution:
    """Return the key 'histogram' with edges and counts, if there can be one.

    Args:
        points: The values, of shape (n,).
        weights: The weight of each value, of shape (n,).
        low: The first edge.
        high: The last edge.
    """
    if high - low > MAX_WIDTH:
        return {}
    try:
        edges = np.histogram_bin_edges(points, BINS, (low, high))
    except ValueError:  # too few floats from low to high
        return {}
    # numpy before 2 does not raise, and returns equal edges.
    if not (np.diff(edges) > 0).all():
        return {}
    bars, edges = np.histogram(points, BINS, (low, high), weights=weights)
    return dict(histogram=dict(edges=edges.tolist(), counts=bars.tolist()))


def column(rows: Sequence[Summary], key: str) -> np.ndarray:
    """Return a key of all summaries, of shape (samples,)."""
    # JSON has no Inf: a summary that was read has the text 'inf'.
    return np.array([float(row[key]) for row in rows])


def quantiles(
    points: np.ndarray, weights: np.ndarray, shares: Sequence[float]
) -> List[float]:
    """Return the least points that have these shares of weight below them.

    Args:
        points: The values, of shape (n,), in any order.
        weights: The weight of each value, of shape (n,).
        shares: Shares of the total weight, from 0 to 1.
    """
    # np.quantile has no weights before numpy 2.
    order = np.argsort(points, kind='stable')
    below = np.cumsum(weights[order])
    places = np.searchsorted(below, np.asarray(shares) * below[-1])
    values: List[float] = points[order][places].tolist()
    return values
