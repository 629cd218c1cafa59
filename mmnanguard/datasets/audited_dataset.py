import random
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch.utils.data import Dataset

from mmnanguard.core import GuardConfigError, dataset_parts, sample_name

from .distribution import summary
from .fields import UnreadableField, name_sample, numbers
from .find_problems import Check, Problem, find_problems
from .transforms import ValidateSample

__all__ = ['AuditedDataset']

PIPELINE = 'pipeline'  # the check that an exception in a pipeline fails
MAX_TEXT = 500  # characters of an exception
MAX_TRIED = 100  # samples in which keys are looked for


class Dropped(Exception):
    """A transform of the pipeline has returned None."""


def refuse(*args: Any) -> int:
    """In place of a dataset's choice of another sample."""
    raise Dropped


class AuditedDataset(Dataset):
    """What an audit finds out about each sample of a dataset.

    It takes the dataset over: no sample stands in for one that the pipeline
    drops, and what a ``ValidateSample`` of the pipeline finds is reported, not
    dropped. Random numbers are seeded by the sample's index, so that a sample
    comes out the same in every order and process.

    Args:
        dataset: Which one.
        checks: Of what its pipeline hands on.
        keys: The fields whose values are summarized.
        seed: Of all random numbers.
    """

    def __init__(
        self,
        dataset: Any,
        checks: Sequence[Tuple[str, Check]],
        keys: Sequence[str],
        seed: int = 0,
    ) -> None:
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        self.dataset = dataset
        self.checks = checks
        self.keys = keys
        self.seed = seed
        self._found: List[Problem] = []
        for part in dataset_parts(dataset):
            if isinstance(part, ValidateSample):
                part.listener = self._found
            if hasattr(part, '_rand_another'):
                part._rand_another = refuse

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Union[dict, GuardConfigError]:
        """A row of plain values; an error of the config is not raised here,
        as a worker process would bury it in its traceback.
        """
        try:
            return self._row(index)
        except GuardConfigError as error:
            return error

    def check_keys(self) -> None:
        """Look for the keys of checks and summaries in the first sample that
        the pipeline hands on: what it lacks is taken for a mistake, which in
        a later one is a finding.

        Raises:
            GuardConfigError: If it lacks some, or has no numbers there.
        """
        for index in range(min(len(self), MAX_TRIED)):
            sample = self._load(index)
            if isinstance(sample, UnreadableField):
                raise sample
            if isinstance(sample, Mapping):
                find_problems(sample, self.checks)
                for key in self.keys:
                    self._summary(sample, key, is_needed=True)
                return

    def _row(self, index: int) -> Dict[str, Any]:
        sample = self._load(index)
        problems = self._found
        row: Dict[str, Any] = {'index': index, 'name': self._name(index)}
        if isinstance(sample, Mapping):
            row['name'] = row['name'] or name_sample(sample)
            problems = problems + self._problems(sample)
            row['values'] = {
                key: self._summary(sample, key) for key in self.keys
            }
        elif isinstance(sample, Dropped):
            row['is_dropped'] = True
        else:
            text = f'{type(sample).__name__}: {sample}'[:MAX_TEXT]
            problems = [*problems, Problem(PIPELINE, text)]
        row['problems'] = [problem._asdict() for problem in problems]
        return row

    def _problems(self, sample: Mapping[str, Any]) -> List[Problem]:
        problems = []
        for check in self.checks:
            try:
                problems += find_problems(sample, [check])
            except UnreadableField as error:
                problems.append(Problem(check[0], str(error)))
        return problems

    def _load(self, index: int) -> Union[Mapping[str, Any], Exception]:
        """A sample, or what its pipeline raised."""
        seed = np.random.SeedSequence([self.seed, index]).generate_state(1)
        random.seed(int(seed[0]))
        np.random.seed(seed)
        torch.manual_seed(int(seed[0]))
        self._found.clear()
        try:
            sample = self.dataset[index]
        except UnreadableField as error:
            return error
        except GuardConfigError:
            raise
        except Exception as error:  # a user's pipeline: whatever it raises
            return error
        return sample if isinstance(sample, Mapping) else {'sample': sample}

    def _name(self, index: int) -> Optional[str]:
        """From the annotations: the pipeline may not hand it on."""
        try:
            return sample_name(self.dataset.get_data_info(index))
        except Exception:  # it has none, or they cannot be read
            return None

    def _summary(
        self, sample: Mapping[str, Any], key: str, is_needed: bool = False
    ) -> Optional[Dict[str, Any]]:
        try:
            arrays = [array for _, array in numbers(sample, key)]
        except UnreadableField:
            if is_needed:
                raise
            return None
        except GuardConfigError:
            raise
        except Exception:  # an expression that this sample does not allow
            return None
        return summary(arrays)
