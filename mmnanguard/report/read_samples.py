"""The numbers of a run that ``StabilityMonitorHook`` has sampled."""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmnanguard.core.rows.event_files import samples_file
from mmnanguard.core.rows.json_numbers import parse_number

from .parse_row import is_count, is_number
from .read_events import OnBytes, Part
from .read_scalars import Curve, cut, read_rows

__all__ = ['NUMBERS', 'Samples', 'read_samples']

# The keys of the numbers of the whole model.
NUMBERS = ('update_ratio', 'logits', 'scaled_grad', 'loss_scale', 'lr')
MAX_POWER = 1023  # of 2, in a float


@dataclass
class Samples:
    """The samples of a run, as curves over iterations.

    Attributes:
        iters: The iterations of all samples, in rising order.
        half: By module, the largest float16 output; inf if it overflowed.
        wide: By module, the largest output while it is of another dtype.
        numbers: The numbers of the whole model, by their key in ``NUMBERS``.
    """

    iters: 'array[int]' = field(default_factory=lambda: array('q'))
    half: Dict[str, Curve] = field(default_factory=dict)
    wide: Dict[str, Curve] = field(default_factory=dict)
    numbers: Dict[str, Curve] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.iters)

    def cut(self, iter_: int) -> None:
        """Remove the samples of an iteration and of all later ones."""
        if not self.iters or self.iters[-1] < iter_:
            return
        for curves in (self.half, self.wide, self.numbers):
            cut(curves, iter_)
            for key in list(curves):
                if not curves[key].iters:
                    del curves[key]
        while self.iters and self.iters[-1] >= iter_:
            self.iters.pop()

    def add(self, row: Mapping[str, Any], modules: Sequence[str]) -> None:
        """Append the sample of a row. Values that are odd are left out.

        Args:
            row: The row; its iteration is above that of all samples.
            modules: The modules of its outputs, by column.
        """
        iter_ = row['iter']
        self.iters.append(iter_)
        is_half = set(filter(is_count, as_list(row.get('float16'))))
        outputs = zip(modules, as_list(row.get('outputs')))
        for column, (module, value) in enumerate(outputs):
            largest = power_of_2(value)
            if largest is not None:
                curves = self.half if column in is_half else self.wide
                append(curves, module, iter_, largest)
        for key in NUMBERS:
            value = row.get(key)
            if value is not None and is_number(value):
                append(self.numbers, key, iter_, parse_number(value))


def read_samples(
    parts: Sequence[Part], on_bytes: OnBytes = lambda num: None
) -> Samples:
    """Return the samples of a run, as if it had never been interrupted.

    They lie beside the events of a process start. If a later start ran
    iterations again, its samples replace those of the earlier start.

    Args:
        parts: The parts of the run, from :func:`find_parts`, in their order.
        on_bytes: Called with the number of bytes of each line that is read.
    """
    samples = Samples()
    seen: List[Path] = []
    for part in parts:
        path = samples_file(part.path)
        # Two starts within a second share a folder, and so a file.
        if path in seen:
            continue
        seen.append(path)
        if part.first is not None:
            samples.cut(part.first)
        modules: Sequence[str] = ()
        for row in read_rows(path, on_bytes):
            if row.get('kind') == 'header':
                modules = list(map(str, as_list(row.get('modules'))))
            # Rows of samples have no kind; another version may add kinds.
            elif is_count(row.get('iter')) and 'kind' not in row:
                samples.cut(row['iter'])
                samples.add(row, modules)
    return samples


def append(
    curves: Dict[str, Curve], key: str, iter_: int, value: float
) -> None:
    """Append a value to one of the curves."""
    curve = curves.setdefault(key, Curve())
    curve.iters.append(iter_)
    curve.values.append(value)


def power_of_2(tenths: object) -> Optional[float]:
    """Return the number whose binary logarithm is given in tenths.

    None stands for an output of 0, and for a module that did not run.
    """
    if not is_number(tenths):
        return None
    power = float(parse_number(tenths)) / 10
    if power == math.inf:
        return math.inf
    if not abs(power) <= MAX_POWER:
        return None
    return float(2.0**power)


def as_list(value: object) -> Sequence[Any]:
    """Return a list as it is, and anything else as an empty one."""
    return value if isinstance(value, list) else ()
