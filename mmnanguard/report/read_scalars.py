"""The curves of a run, from the scalars that MMEngine wrote."""

import json
import logging
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from .panels import GRAD_NORM, LOSS, LOSS_SCALE, LR
from .read_events import OnBytes, Part

__all__ = ['FACTOR', 'Curve', 'factor_of', 'panel_of', 'read_scalars']

FACTOR = 'lr_factor'


@dataclass
class Curve:
    """One scalar of a run.

    Attributes:
        iters: From 1, rising.
        values: As many; those that are not finite are NaN or Inf.
    """

    iters: 'array[int]' = field(default_factory=lambda: array('q'))
    values: 'array[float]' = field(default_factory=lambda: array('d'))


def panel_of(key: str) -> str:
    """Return the identifier of the panel that draws a scalar, or ''.

    The keys are those of MMEngine, without 'train/'; several optimizers write
    their name into them.
    """
    last = key.split('/')[-1].split('.')[-1]
    if last == 'grad_norm':
        return GRAD_NORM
    if last == 'amp_scale':
        return LOSS_SCALE
    if last == 'lr':
        return LR
    return LOSS if 'loss' in last and 'scale' not in last else ''


def factor_of(key: str) -> str:
    """The scalar that a guard multiplies this learning rate by."""
    return '/'.join(['guard', *key.split('.')[:-1], FACTOR])


def read_scalars(
    parts: Sequence[Part], on_bytes: OnBytes = lambda num: None
) -> Dict[str, Curve]:
    """The curves of a run, as if it had never been interrupted.

    Beside the events of a process start stands what MMEngine's
    ``LocalVisBackend`` wrote: ``vis_data/scalars.json``, one JSON object a
    line, which may hold a bare NaN. What an earlier start wrote of iterations
    that a later one ran again is replaced. Rows without ``iter`` are those of
    a validation, and left out.

    Args:
        parts: Of the run, from :func:`find_parts`, in their order.
        on_bytes: Called with the number of bytes of each line that is read.

    Returns:
        By key, those that :func:`panel_of` knows, and factors of learning
        rates; none if nothing was written.
    """
    curves: Dict[str, Curve] = {}
    seen: List[Path] = []
    for part in parts:
        path = scalars_of(part)
        if path in seen:  # two starts within a second
            continue
        seen.append(path)
        if part.first is not None:
            cut(curves, part.first)
        for row in read_rows(path, on_bytes):
            iter_ = row.get('iter')
            if not isinstance(iter_, int):
                continue
            cut(curves, iter_)  # one that was killed may have left more
            for key, value in row.items():
                is_known = panel_of(key) or key.split('/')[-1] == FACTOR
                if is_known and isinstance(value, (int, float)):
                    curve = curves.setdefault(key, Curve())
                    curve.iters.append(iter_)
                    curve.values.append(value)
    return curves


def cut(curves: Dict[str, Curve], iter_: int) -> None:
    """Take out that iteration and all later ones."""
    for curve in curves.values():
        if curve.iters and curve.iters[-1] >= iter_:
            place = bisect_left(curve.iters, iter_)
            del curve.iters[place:], curve.values[place:]


def scalars_of(part: Part) -> Path:
    """Return the file of the scalars that belong to a process start.

    A file without a name of its own is called as its folder.
    """
    folder = part.path.absolute().parents[1]
    path = folder / 'vis_data' / 'scalars.json'
    other = folder / 'vis_data' / f'{folder.name}.json'
    return path if path.exists() else other


def read_rows(path: Path, on_bytes: OnBytes) -> Iterator[Dict[str, Any]]:
    if not path.exists():
        return
    num_bad = 0
    with path.open('rb') as file:
        for line in file:
            on_bytes(len(line))
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            else:
                num_bad += 1
    if num_bad:
        logging.getLogger('mmnanguard').warning(
            '%s: lines that are half-written or damaged are left out: %d',
            path,
            num_bad,
        )
