"""The samples of a run, ``stability.jsonl``."""

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.stability.sample import Sample

__all__ = ['SampleFile']

# Bytes after which every second sample is left out.
MAX_SIZE = 4 * 2**20


class SampleFile:
    """Writes samples as rows of a header's columns.

    The first row names the columns. Numbers of modules are integers: ten times
    the binary logarithm of the largest output, or inf. When the file is large,
    every second sample is left out from the beginning on, so that it stays
    small in a long run.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: Dict[str, int] = {}
        self._size = 0
        self._num_samples = 0
        self._every = 1  # n-th sample is written

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            OSError: If the file cannot be written.
        """
        self._num_samples += 1
        if (self._num_samples - 1) % self._every:
            return
        lines: List[str] = []
        # Modules that run for the first time are new columns.
        is_known = set(sample.outputs) <= set(self._columns)
        if self._size == 0 or not is_known:
            for name in sample.outputs:
                self._columns.setdefault(name, len(self._columns))
            header = {
                'schema': 1,
                'kind': 'header',
                'modules': list(self._columns),
            }
            lines.append(to_json(header))
        lines.append(to_json(self._row(sample)))
        text = '\n'.join(lines) + '\n'
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open('a') as file:
            file.write(text)
        self._size += len(text)
        if self._size > MAX_SIZE:
            self._halve()

    def _row(self, sample: Sample) -> Dict[str, Any]:
        numbers: List[Optional[float]] = [None] * len(self._columns)
        dtypes: List[str] = [''] * len(self._columns)
        for name, largest in sample.outputs.items():
            numbers[self._columns[name]] = tenths(largest.value)
            dtypes[self._columns[name]] = largest.dtype
        half = [i for i, dtype in enumerate(dtypes) if dtype == 'float16']
        return {
            'iter': sample.iter,
            'outputs': numbers,
            'float16': half,
            'logits': largest_of(sample.logits),
            'update_ratio': sample.update_ratio,
            'scaled_grad': sample.scaled_grad,
            'loss_scale': sample.loss_scale,
            'lr': sample.lr,
        }

    def _halve(self) -> None:
        """Leave out every second sample, now and from now on."""
        kept: List[str] = []
        num_samples = 0
        for row in self._path.read_text().splitlines():
            is_header = '"header"' in row
            if is_header or num_samples % 2 == 0:
                kept.append(row)
            num_samples += not is_header
        text = '\n'.join(kept) + '\n'
        with atomic_write(self._path) as path:
            Path(path).write_text(text)
        self._size = len(text)
        self._every *= 2


def tenths(value: float) -> Optional[float]:
    """Return ten times the binary logarithm, an integer; None for 0."""
    # An output that has overflowed must not look like one of 0.
    if math.isinf(value):
        return math.inf
    if value <= 0 or math.isnan(value):
        return None
    return round(10 * math.log2(value))


def largest_of(values: Mapping[str, float]) -> Optional[float]:
    """Return the largest value, or None if there is none."""
    return max(values.values(), default=None)
