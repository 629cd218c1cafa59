"""A dataset without the samples on a list."""

import copy
import logging
import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Union

import numpy as np
import torch
from mmengine.dataset import force_full_init
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import Dataset

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard._support.sample_name import sample_name
from mmnanguard.core import GuardConfigError
from mmnanguard.registry import DATASETS

from .fields import name_sample
from .sample_list import Listed, read_sample_list, to_listed

__all__ = ['ExcludeSamples']

MAX_NAMED = 5  # samples in a message


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restore the generators of Python, NumPy and PyTorch at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@DATASETS.register_module()
class ExcludeSamples:
    """A dataset without some of its samples.

    The remaining samples are renumbered, in their order. A dataset that is
    no wrapper itself also never chooses an excluded sample as the
    replacement for a sample that its pipeline drops.

    Args:
        dataset: A dataset, or its config.
        samples: The samples to exclude: the file that
            ``tools/audit_dataset.py`` writes, or indices and names. A name
            is the sample's ``img_path``, or else 'img_id 7' or 'sample_idx
            7', as in events, and excludes all samples that have it. A line
            of the file that has both an index and a name excludes the index
            as long as that sample has that name, otherwise the name.
        allow_missing: Whether to go on with a warning if the dataset does
            not have a listed sample.
        lazy_init: Whether to read the annotations only when a sample is asked
            for.

    Raises:
        GuardConfigError: If a listed sample is not in the dataset, or none
            would be left.
    """

    def __init__(
        self,
        dataset: Union[Dict[str, object], Dataset[object]],
        samples: Union[str, Sequence[Union[int, str]]],
        allow_missing: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if isinstance(dataset, dict):
            # MMEngine's root registry finds the datasets of all projects.
            dataset = MMENGINE_DATASETS.build(dataset)
        # Any: a dataset may have more methods than torch's Dataset declares.
        self.dataset: Any = dataset
        if isinstance(samples, str):
            self.listed = read_sample_list(samples)
        else:
            self.listed = list(map(to_listed, samples))
        self.allow_missing = allow_missing
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> Dict[str, object]:
        """A copy of the dataset's meta information."""
        metainfo: Dict[str, object] = getattr(self.dataset, 'metainfo', {})
        return copy.deepcopy(metainfo)

    def full_init(self) -> None:
        """Read the annotations and find the samples that stay.

        Raises:
            GuardConfigError: If a listed sample is not in the dataset, or
                none would be left.
        """
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        size = len(self.dataset)
        left_out = self._listed_indices(size)
        kept = [index for index in range(size) if index not in left_out]
        if not kept:
            raise GuardConfigError(
                f'ExcludeSamples leaves out all {size} samples.'
            )
        # An array: a list of ints would be copied page by page in forked
        # workers, because reading an int changes its reference count.
        self.indices = np.asarray(kept)
        if hasattr(self.dataset, '_rand_another'):
            # Otherwise the dataset might replace a sample that its pipeline
            # drops by an excluded sample.
            self.dataset._rand_another = self._rand_kept
        message = (
            f'ExcludeSamples leaves out {len(left_out)} of {size} samples'
        )
        say(f'mmnanguard: {message}')
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> Dict[str, object]:
        """Return the annotations of a remaining sample."""
        info: Dict[str, object] = self.dataset.get_data_info(
            int(self.indices[idx])
        )
        return info

    @force_full_init
    def get_cat_ids(self, idx: int) -> List[int]:
        """Return the categories of a remaining sample."""
        categories: List[int] = self.dataset.get_cat_ids(
            int(self.indices[idx])
        )
        return categories

    @force_full_init
    def __getitem__(self, idx: int) -> object:
        return self.dataset[int(self.indices[idx])]

    @force_full_init
    def __len__(self) -> int:
        return len(self.indices)

    # numpy's global generator, as in the method of MMEngine that it replaces.
    def _rand_kept(self, *args: object) -> int:
        return int(self.indices[np.random.randint(0, len(self.indices))])

    def _listed_indices(self, size: int) -> Set[int]:
        """Return the indices of all listed samples.

        Args:
            size: Number of samples of the dataset.
        """
        by_index: Set[int] = set()
        rest: List[Listed] = []
        for listed in self.listed:
            index, name = listed.index, listed.name
            if (
                index is not None
                and index < size
                and self._may_have_name(index, name)
            ):
                by_index.add(index)
            else:
                rest.append(listed)
        indices: Dict[Optional[str], Set[int]] = {}
        # Reading all annotations takes long, and loading all samples of a
        # dataset without annotations longer; do it only if a name needs it.
        if any(listed.name is not None for listed in rest):
            for index in range(size):
                indices.setdefault(self._name(index), set()).add(index)
        # A list entry without a name must not match samples without a name.
        indices.pop(None, None)
        by_name: Set[int] = set()
        lost = []
        for listed in rest:
            if listed.name in indices:
                by_name |= indices[listed.name]
            else:
                lost.append(listed)
        if lost:
            self._report_lost(lost)
        return by_index | by_name

    def _may_have_name(self, index: int, name: Optional[str]) -> bool:
        # A dataset without names cannot contradict the list.
        return name is None or self._name(index) in (None, name)

    def _name(self, index: int) -> Optional[str]:
        if hasattr(self.dataset, 'get_data_info'):
            return sample_name(self.dataset.get_data_info(index))
        # Only the loaded sample of another dataset has a name.
        with unchanged_random_state():
            return name_sample(self.dataset[index])

    def _report_lost(self, lost: List[Listed]) -> None:
        more = ' ...' if lost[MAX_NAMED:] else ''
        message = (
            f'ExcludeSamples: {len(lost)} of {len(self.listed)} listed '
            f'samples are not in the dataset: '
            f'{escape(", ".join(map(str, lost[:MAX_NAMED])))}{more}. '
        )
        if not self.allow_missing:
            raise GuardConfigError(
                f'{message}The list is old or that of another dataset: run '
                'python -m mmnanguard audit_dataset again, or set '
                'allow_missing=True.'
            )
        say(f'mmnanguard: {message}', logging.WARNING)
