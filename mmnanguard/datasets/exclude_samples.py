import copy
import logging
from typing import Any, Dict, List, Optional, Sequence, Set, Union

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import Dataset

from mmnanguard._support.sample_name import sample_name
from mmnanguard.core import GuardConfigError
from mmnanguard.registry import DATASETS

from .sample_list import Listed, read_sample_list, to_listed

__all__ = ['ExcludeSamples']

MAX_TOLD = 5  # samples in a message


@DATASETS.register_module()
class ExcludeSamples:
    """A dataset without some of its samples.

    It renumbers: its samples are those that stay, in their order. Around a
    dataset that is no wrapper itself, no sample that is left out stands in
    for one that the pipeline drops either.

    Args:
        dataset: Which one, or its config.
        samples: What to leave out: the file that ``tools/audit_dataset.py``
            writes, or indices and names. A name is the sample's ``img_path``,
            or else 'img_id 7' or 'sample_idx 7', as in events, and leaves out
            all that have it. A line of the file that has both goes by the
            index as long as that sample has that name.
        allow_missing: With a listed sample that the dataset does not have,
            go on, with a warning.
        lazy_init: Read no annotations yet.

    Raises:
        GuardConfigError: If a listed sample is not in the dataset, or none
            would be left.
    """

    def __init__(
        self,
        dataset: Union[dict, Dataset],
        samples: Union[str, Sequence[Union[int, str]]],
        allow_missing: bool = False,
        lazy_init: bool = False,
    ) -> None:
        self.dataset: Any = dataset
        if isinstance(dataset, dict):
            self.dataset = MMENGINE_DATASETS.build(dataset)
        self.listed = (
            read_sample_list(samples)
            if isinstance(samples, str)
            else [to_listed(sample) for sample in samples]
        )
        self.allow_missing = allow_missing
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        return copy.deepcopy(getattr(self.dataset, 'metainfo', {}))

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        size = len(self.dataset)
        left_out = self._find(size)
        kept = [index for index in range(size) if index not in left_out]
        if not kept:
            raise GuardConfigError(
                f'ExcludeSamples leaves out all {size} samples.'
            )
        self.indices = np.asarray(kept)
        if hasattr(self.dataset, '_rand_another'):
            # Else it would take any, in place of one that is dropped.
            self.dataset._rand_another = self._rand_kept
        told = f'ExcludeSamples leaves out {len(left_out)} of {size} samples'
        print_log(f'mmnanguard: {told}', 'current')
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(int(self.indices[idx]))

    @force_full_init
    def get_cat_ids(self, idx: int) -> List[int]:
        return self.dataset.get_cat_ids(int(self.indices[idx]))

    @force_full_init
    def __getitem__(self, idx: int) -> Any:
        return self.dataset[int(self.indices[idx])]

    @force_full_init
    def __len__(self) -> int:
        return len(self.indices)

    def _rand_kept(self, *args: Any) -> int:
        return int(self.indices[np.random.randint(0, len(self.indices))])

    def _find(self, size: int) -> Set[int]:
        """Indices of what is listed."""
        found: Set[int] = set()
        rest: List[Listed] = []
        for listed in self.listed:
            index, name = listed.index, listed.name
            if index is not None and index < size and self._is(index, name):
                found.add(index)
            else:
                rest.append(listed)
        indices: Dict[Optional[str], Set[int]] = {}
        if any(listed.name is not None for listed in rest):
            for index in range(size):  # of all annotations
                indices.setdefault(self._name(index), set()).add(index)
        indices.pop(None, None)
        for listed in rest:
            found |= indices.get(listed.name, set())
        lost = [listed for listed in rest if listed.name not in indices]
        if lost:
            self._tell(lost)
        return found

    def _is(self, index: int, name: Optional[str]) -> bool:
        return name is None or self._name(index) in (None, name)

    def _name(self, index: int) -> Optional[str]:
        if hasattr(self.dataset, 'get_data_info'):
            return sample_name(self.dataset.get_data_info(index))
        return None

    def _tell(self, lost: List[Listed]) -> None:
        more = ' ...' if lost[MAX_TOLD:] else ''
        told = (
            f'ExcludeSamples: {len(lost)} of {len(self.listed)} listed '
            f'samples are not in the dataset: '
            f'{", ".join(map(str, lost[:MAX_TOLD]))}{more}. '
        )
        if not self.allow_missing:
            raise GuardConfigError(
                f'{told}The list is old or that of another dataset: run '
                'python -m mmnanguard audit_dataset again, or set '
                'allow_missing=True.'
            )
        print_log(f'mmnanguard: {told}', 'current', logging.WARNING)
