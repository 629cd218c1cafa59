"""The results of validations, and the best checkpoints."""

import math
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from mmnanguard._support.escape import escape

from .read_scalars import VAL_PREFIX, VAL_STEP, Curve

__all__ = ['Metric', 'describe_validation', 'metrics_of']

# Parts of the keys of metrics by which MMEngine knows their direction:
# https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/checkpoint_hook.py#L125
GREATER = (
    *('acc', 'top', 'ar@', 'auc', 'precision', 'map', 'mdice', 'miou'),
    *('macc', 'aacc'),
)
LESS = ('loss',)
# Names that MMEngine's CheckpointHook(save_best=...) gives.
BEST_FILE = re.compile(r'best_(.+)_(epoch|iter)_(\d+)(?:\.pth)?')


class Metric(NamedTuple):
    """One metric of the validations of a run.

    Attributes:
        name: The key of the metric, such as 'coco/bbox_mAP'.
        last: Its last value.
        last_iter: The iteration of the last validation.
        best: Its best value: that of the best checkpoint, or else by the
            direction that MMEngine gives the key; None if that is not known.
        best_iter: The iteration of the best value.
        checkpoint: The name of the best checkpoint; '' if there is none.
    """

    name: str
    last: float
    last_iter: int
    best: Optional[float] = None
    best_iter: Optional[int] = None
    checkpoint: str = ''

    def sentence(self) -> str:
        """Return the metric in words."""
        words = f'{self.name} {self.last:.4g} at iteration {self.last_iter:,}'
        if self.best_iter == self.last_iter:
            words += ', the best'
        elif self.best is not None:
            words += f', the best {self.best:.4g} at {self.best_iter:,}'
        if self.checkpoint:
            words += f' ({self.checkpoint})'
        return words


def metrics_of(
    curves: Dict[str, Curve], work_dir: Optional[Path] = None
) -> Tuple[Metric, ...]:
    """Return the metrics of a run; those with a best checkpoint come first.

    Args:
        curves: The curves from :func:`read_scalars`.
        work_dir: The folder of the checkpoints; None if it is not known.
    """
    files = best_files(work_dir)
    steps = curves.get(VAL_STEP, Curve())
    metrics: List[Metric] = []
    for key, curve in curves.items():
        if not key.startswith(VAL_PREFIX):
            continue
        name = key[len(VAL_PREFIX) :]
        place = best_place(name, curve)
        # MMEngine replaces the slashes of the key.
        file = files.get(name.replace('/', '_'))
        if file is not None and file.step in steps.values:
            iter_ = steps.iters[steps.values.index(file.step)]
            if iter_ in curve.iters:
                place = curve.iters.index(iter_)
        best, best_iter = None, None
        if place is not None:
            best, best_iter = curve.values[place], curve.iters[place]
        checkpoint = file.name if file is not None else ''
        last, last_iter = curve.values[-1], curve.iters[-1]
        metrics.append(
            Metric(name, last, last_iter, best, best_iter, checkpoint)
        )
    metrics.sort(key=rank_of)
    return tuple(metrics)


def rank_of(metric: Metric) -> Tuple[bool, bool]:
    """Return the sort key that puts the most important metrics first."""
    return not metric.checkpoint, metric.best is None


class BestFile(NamedTuple):
    """A best checkpoint: its name, and the epoch or iteration in it."""

    name: str
    step: int


def best_files(work_dir: Optional[Path]) -> Dict[str, BestFile]:
    """Return the newest best checkpoint of each metric, by its key."""
    files: Dict[str, BestFile] = {}
    paths = [] if work_dir is None else work_dir.glob('best_*')
    for path in sorted(paths):
        match = BEST_FILE.fullmatch(path.name)
        if match is None:
            continue
        file = BestFile(path.name, int(match[3]))
        known = files.get(match[1])
        if known is None or known.step < file.step:
            files[match[1]] = file
    return files


def best_place(name: str, curve: Curve) -> Optional[int]:
    """Return the place of the best value; None if none is known to be."""
    values = list(curve.values)
    finite = list(filter(math.isfinite, values))
    if not finite:
        return None
    if any(part in name.lower() for part in LESS):
        return values.index(min(finite))
    if any(part in name.lower() for part in GREATER):
        return values.index(max(finite))
    return None


def describe_validation(metrics: Tuple[Metric, ...]) -> str:
    """Return the most important metrics in a line; '' without any."""
    shown = [metric for metric in metrics if metric.checkpoint]
    sentences = [metric.sentence() for metric in shown or metrics[:1]]
    return escape('; '.join(sentences))
