import random
from functools import partial
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
from torch.utils.data import Dataset

from mmnanguard._support.dataset_parts import dataset_parts
from mmnanguard._support.sample_name import sample_name
from mmnanguard.core import GuardConfigError

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

    def __getitem__(
        self, index: Optional[int]
    ) -> Union[dict, GuardConfigError, None]:
        """A row of plain values; for None no row, but a look for the keys.
        An error of the config is not raised here, as a worker process would
        bury it in its traceback.
        """
        try:
            if index is not None:
                return self._row(index)
            self.check_keys()
        except GuardConfigError as error:
            return error
        return None

    def check_keys(self) -> None:
        """Look for the keys of checks and summaries in the first samples: what
        none of them has is taken for a mistake, what some lack is a finding.

        Raises:
            GuardConfigError: If none has some key, or numbers there.
        """
        looks: List[Callable] = [
            *(partial(find_problems, checks=[check]) for check in self.checks),
            *(partial(summarized, key=key) for key in self.keys),
        ]
        mistake: Optional[Exception] = None
        for index in range(min(len(self), MAX_TRIED)):
            sample = self._load(index)
            if isinstance(sample, UnreadableField):
                mistake = mistake or sample
            elif isinstance(sample, Mapping):
                failed = {}
                for look in looks:
                    try:
                        look(sample)
                    except UnreadableField as error:
                        failed[look] = error
                if not failed:
                    return
                looks = list(failed)
                mistake = failed[looks[0]]
        if mistake:
            raise mistake

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
        # torch.manual_seed() formats the stack for devices that load no data.
        torch.default_generator.manual_seed(int(seed[0]))
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
        self, sample: Mapping[str, Any], key: str
    ) -> Optional[Dict[str, Any]]:
        try:
            return summarized(sample, key)
        except UnreadableField:
            return None


def summarized(sample: Mapping[str, Any], key: str) -> Dict[str, Any]:
    """What is kept of a field.

    Raises:
        UnreadableField: If the sample has none, or an expression fails.
    """
    try:
        return summary([array for _, array in numbers(sample, key)])
    except GuardConfigError:
        raise
    except Exception as error:  # an expression: whatever it raises
        raise UnreadableField(
            f"'{key}' fails: {type(error).__name__}: {error}."
        ) from error
