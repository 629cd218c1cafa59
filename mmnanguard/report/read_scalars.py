"""The curves of a run, from the scalars that MMEngine wrote."""

import json
import logging
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from .panels import GRAD_NORM, LOSS, LOSS_SCALE, LR, VALIDATION
from .parse_row import is_count
from .read_events import OnBytes, Part

__all__ = [
    'FACTOR',
    'VAL_PREFIX',
    'VAL_STEP',
    'Curve',
    'factor_of',
    'panel_of',
    'read_scalars',
]

FACTOR = 'lr_factor'  # last part of the key of a guard's scalar
VAL_PREFIX = 'val/'  # of the keys of what a validation measured
# The epoch or iteration, as MMEngine counts it, at which each validation ran.
VAL_STEP = 'step of val'
# Keys of a row of a validation that are no results.
TIMES = ('time', 'data_time')
NO_METRICS = (*TIMES, 'step', 'epoch', 'memory')


@dataclass
class Curve:
    """One scalar of a run.

    Attributes:
        iters: Iterations from 1, in rising order.
        values: The values at these iterations, NaN and Inf included.
    """

    # Arrays need 16 bytes per point; lists would need four times as much.
    iters: 'array[int]' = field(default_factory=lambda: array('q'))
    values: 'array[float]' = field(default_factory=lambda: array('d'))


def panel_of(key: str) -> str:
    """Return the identifier of the panel that draws a scalar, or ''.

    MMEngine writes the keys of training scalars without 'train/'.
    """
    if key.startswith(VAL_PREFIX):
        return VALIDATION
    # With several optimizers, the name of the optimizer and a dot come first,
    # as in 'gen.lr'. Models may put their name and a slash first.
    last = key.split('/')[-1].split('.')[-1]
    if last == 'grad_norm':
        return GRAD_NORM
    if last == 'amp_scale':
        return LOSS_SCALE
    if last == 'lr':
        return LR
    # MMEngine sums up every value whose key has 'loss', so models name the
    # parts of their loss like that. 'loss_scale' is no loss.
    if 'loss' in last and 'scale' not in last:
        return LOSS
    return ''


def factor_of(key: str) -> str:
    """Return the key of the factor by which a guard lowers a learning rate.

    Args:
        key: The key of the learning rate, such as 'gen.lr'.
    """
    return '/'.join(['guard', *key.split('.')[:-1], FACTOR])


def read_scalars(
    parts: Sequence[Part], on_bytes: OnBytes = lambda num: None
) -> Dict[str, Curve]:
    """Return the curves of a run, as if it had never been interrupted.

    MMEngine's ``LocalVisBackend`` writes ``vis_data/scalars.json`` beside the
    events of a process start: one JSON object a line, which may hold a bare
    NaN. If a later start ran iterations again, its scalars replace those of
    the earlier start. A row without ``iter`` has the results of a validation.

    Args:
        parts: The parts of the run, from :func:`find_parts`, in their order.
        on_bytes: Called with the number of bytes of each line that is read.

    Returns:
        The curves by key: the scalars that have a panel (:func:`panel_of`),
        the factors of learning rates, and ``VAL_STEP``. The results of
        validations have keys with ``VAL_PREFIX``. Empty if there are no
        scalars.
    """
    curves: Dict[str, Curve] = {}
    seen: List[Path] = []
    for part in parts:
        path = scalars_of(part)
        # Two starts within a second share a folder, and so a file.
        if path in seen:
            continue
        seen.append(path)
        # A start that finished no iteration wrote no scalars, so the loop
        # below would not remove those that the start made invalid.
        if part.first is not None:
            cut(curves, part.first)
        # Training iterations that this start has logged.
        last = max((part.first or 1) - 1, 0)
        for row in read_rows(path, on_bytes):
            iter_: Any = row.get('iter')
            if iter_ is None and is_validation(row):
                add_validation(curves, last, row)
            if is_count(iter_):
                # The row of kind 'start' may be lost, so the scalars
                # themselves must be in rising order.
                cut(curves, iter_)
                add_scalars(curves, iter_, row)
                last = iter_
    return curves


def is_validation(row: Dict[str, Any]) -> bool:
    """Whether a row without ``iter`` has the results of a validation."""
    # MMEngine's IterTimerHook adds times. Other rows without an iteration are
    # scalars that a hook has given to the visualizer.
    return is_count(row.get('step')) and any(key in row for key in TIMES)


def add_validation(
    curves: Dict[str, Curve], last: int, row: Dict[str, Any]
) -> None:
    """Append the results of a validation to their curves.

    Args:
        curves: The curves by key.
        last: The last iteration that was logged before the validation.
        row: The row; its step is an iteration, or the number of an epoch.
    """
    # Epochs are fewer than their iterations.
    iter_ = max(last, row['step'])
    results = {}
    for key, value in row.items():
        is_result = isinstance(value, float) or is_count(value)
        if is_result and key not in NO_METRICS:
            results[f'{VAL_PREFIX}{key}'] = value
    if not results:
        return
    results[VAL_STEP] = row['step']
    # A resumed run may validate again before it trains.
    known = {key: curves[key] for key in results if key in curves}
    cut(known, iter_)
    for key, value in results.items():
        curve = curves.setdefault(key, Curve())
        curve.iters.append(iter_)
        curve.values.append(value)


def add_scalars(
    curves: Dict[str, Curve], iter_: int, row: Dict[str, Any]
) -> None:
    """Append the scalars of one iteration to their curves."""
    for key, value in row.items():
        is_known = panel_of(key) or key.split('/')[-1] == FACTOR
        # An integer of JSON may be too large for an array.
        if is_known and (isinstance(value, float) or is_count(value)):
            curve = curves.setdefault(key, Curve())
            curve.iters.append(iter_)
            curve.values.append(value)


def cut(curves: Dict[str, Curve], iter_: int) -> None:
    """Remove an iteration and all later ones from the curves."""
    for curve in curves.values():
        # Nearly always there is nothing to remove: skip the search then.
        if curve.iters and curve.iters[-1] >= iter_:
            place = bisect_left(curve.iters, iter_)
            del curve.iters[place:], curve.values[place:]


def scalars_of(part: Part) -> Path:
    """Return the file of the scalars that belong to a process start."""
    folder = part.path.absolute().parents[1]
    path = folder / 'vis_data' / 'scalars.json'
    if path.exists():
        return path
    # MMEngine's LoggerHook has a copy written that is named like the folder.
    return folder / 'vis_data' / f'{folder.name}.json'


def read_rows(path: Path, on_bytes: OnBytes) -> Iterator[Dict[str, Any]]:
    """Yield the rows of a file, and log how many lines are damaged."""
    # A run may log no scalars.
    if not path.exists():
        return
    num_bad = 0
    # Read as bytes: a killed process may have left half a character.
    with path.open('rb') as file:
        for line in file:
            on_bytes(len(line))
            try:
                row = json.loads(line)
            except (RecursionError, ValueError):
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
