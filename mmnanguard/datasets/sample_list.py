"""The list of samples that an audit writes and ExcludeSamples reads."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, List, Optional

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import is_count

__all__ = ['Listed', 'read_sample_list', 'to_listed', 'write_sample_list']

# An index; str.isdigit() is also true of what int() cannot read.
INDEX = re.compile('[0-9]{1,18}')
# The comment in the first line, for users who edit the file by hand.
HEAD = '# index in the dataset, tab, name\n'


@dataclass(frozen=True)
class Listed:
    """A sample on a list, by its index, its name, or both."""

    index: Optional[int] = None
    name: Optional[str] = None

    def __str__(self) -> str:
        if self.name is None:
            return f'index {self.index}'
        return self.name


def write_sample_list(path: Path, samples: Iterable[Listed]) -> None:
    """Write a list of samples that all have an index."""
    with path.open('wb') as file:
        file.write(HEAD.encode())
        for sample in samples:
            line = f'{sample.index}\n'
            # The index is enough where the name would break the line.
            if sample.name is not None and not set(sample.name) & {*'\r\n'}:
                line = f'{sample.index}\t{sample.name}\n'
            # A name may be a path whose bytes are no UTF-8: Python holds them
            # as surrogates, and the reader restores them.
            file.write(line.encode('utf-8', 'surrogateescape'))


def read_sample_list(path: str) -> List[Listed]:
    """Read a list of samples.

    A line holds an index, a name, or both with a tab between. Lines that
    begin with '#' are comments.

    Raises:
        GuardConfigError: If there is no such file.
    """
    try:
        # Split at '\n' only: str.splitlines() would also split a name at
        # other separators.
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            lines = file.read().split('\n')
    except OSError as error:
        raise GuardConfigError(
            f'{path}, a list of samples, cannot be read: {error}. '
            'python -m mmnanguard audit_dataset writes one.'
        ) from None
    samples = []
    for line in lines:
        index, tab, name = line.partition('\t')
        # A name may hold a tab as well; an index before it decides.
        if tab and INDEX.fullmatch(index):
            samples.append(Listed(int(index), name))
        elif INDEX.fullmatch(line):
            samples.append(to_listed(int(line)))
        elif line and not line.startswith('#'):
            samples.append(to_listed(line))
    return samples


def to_listed(sample: object) -> Listed:
    """Return the list's entry for an index or a name.

    Raises:
        GuardConfigError: If the sample is neither.
    """
    if isinstance(sample, str):
        return Listed(name=sample)
    if isinstance(sample, int) and is_count(sample, least=0):
        return Listed(index=sample)
    raise GuardConfigError(
        f'ExcludeSamples.samples has {sample!r}: it must be an index from 0 '
        'or a name.'
    )
