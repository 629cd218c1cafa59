"""A dataset that gives a row of findings for each sample."""

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
    TypedDict,
    Union,
)

import numpy as np
import torch
from torch.utils.data import Dataset

from mmnanguard._support.dataset_parts import dataset_parts
from mmnanguard._support.sample_name import sample_name
from mmnanguard.core import GuardConfigError

from .distribution import Summary, summary
from .fields import Sample, UnreadableField, name_sample, numbers
from .find_problems import Check, Problem, find_problems
from .transforms import ValidateSample

__all__ = ['AuditedDataset', 'Row']

PIPELINE = 'pipeline'  # the check that an exception in a pipeline fails
MAX_TEXT = 500  # characters of an exception
MAX_TRIED = 100  # samples in which keys are searched


class Row(TypedDict, total=False):
    """The findings on a sample, as a line of JSON.

    Attributes:
        index: The index of the sample in the dataset.
        name: The name of the sample; None if it has no name.
        problems: The problems, as dicts with ``check`` and ``text``.
        values: The summary of each field by its key, None for a field that
            the sample does not have. Absent if the pipeline gave no sample.
        is_dropped: True if the pipeline dropped the sample; otherwise absent.
    """

    index: int
    name: Optional[str]
    problems: List[Dict[str, str]]
    values: Dict[str, Optional[Summary]]
    is_dropped: bool


class Dropped(Exception):
    """A transform of the pipeline has returned None."""


def refuse_another(*args: object) -> int:
    """Raise :class:`Dropped` instead of choosing another sample at random."""
    raise Dropped


class AuditedDataset(Dataset[Union[Row, GuardConfigError, None]]):
    """The findings of an audit on each sample of a dataset.

    It changes the dataset: the dataset chooses no other sample for one that
    the pipeline drops, and problems that a ``ValidateSample`` of the pipeline
    finds are reported, not dropped. Random numbers are seeded by the sample's
    index, so that a sample is the same in every order and process.

    Args:
        dataset: A dataset of MMEngine, or any object with ``__len__`` and
            ``__getitem__``.
        checks: The name and the function of each check on the output of the
            dataset's pipeline.
        keys: The fields whose values are summarized.
        seed: The seed of all random numbers.
    """

    def __init__(
        self,
        dataset: Any,
        checks: Sequence[Tuple[str, Check]],
        keys: Sequence[str],
        seed: int = 0,
    ) -> None:
        # A lazy dataset may have no parts to visit yet, and each worker
        # process would read the annotations again.
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        self.dataset = dataset
        self.checks = checks
        self.keys = keys
        self.seed = seed
        # Problems that a ValidateSample of the pipeline reported.
        self._reported: List[Problem] = []
        for part in dataset_parts(dataset):
            if isinstance(part, ValidateSample):
                part.listener = self._reported
            # MMEngine's BaseDataset would replace a dropped sample by another
            # sample, whose row would then have the wrong index.
            if hasattr(part, '_rand_another'):
                part._rand_another = refuse_another

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(
        self, index: Optional[int]
    ) -> Union[Row, GuardConfigError, None]:
        """Return the row of a sample, or check the keys if index is None.

        An error of the config is returned, not raised: a worker process
        would bury its message in a traceback.
        """
        try:
            if index is not None:
                return self._row(index)
            self.check_keys()
        except GuardConfigError as error:
            return error
        return None

    def check_keys(self) -> None:
        """Search the keys of checks and summaries in the first samples.

        A key that none of them has is a mistake in the config; a key that
        some lack is a finding on those samples.

        Raises:
            GuardConfigError: If no sample has some key, or numbers there.
        """
        readers: List[Callable[[Sample], object]] = []
        for check in self.checks:
            readers.append(partial(find_problems, checks=[check]))
        for key in self.keys:
            readers.append(partial(summarized, key=key))
        mistake: Optional[Exception] = None
        for index in range(min(len(self), MAX_TRIED)):
            sample = self._load(index)
            if isinstance(sample, UnreadableField):
                # A ValidateSample of the pipeline lacks its key.
                mistake = mistake or sample
            elif isinstance(sample, Mapping):
                failed = {}
                for reader in readers:
                    try:
                        reader(sample)
                    except UnreadableField as error:
                        failed[reader] = error
                if not failed:
                    return
                # A reader that a sample has satisfied needs no other sample.
                readers = list(failed)
                mistake = failed[readers[0]]
        if mistake:
            raise mistake

    def _row(self, index: int) -> Row:
        sample = self._load(index)
        problems = self._reported
        row: Row = {'index': index, 'name': self._name(index)}
        if isinstance(sample, Mapping):
            row['name'] = row['name'] or name_sample(sample)
            # A new list: the pipeline's own list is reused for each sample.
            problems = problems + self._problems(sample)
            row['values'] = {}
            for key in self.keys:
                row['values'][key] = self._summary(sample, key)
        elif isinstance(sample, Dropped):
            row['is_dropped'] = True
        else:
            text = f'{type(sample).__name__}: {sample}'[:MAX_TEXT]
            problems = [*problems, Problem(PIPELINE, text)]
        row['problems'] = list(map(Problem._asdict, problems))
        return row

    def _problems(self, sample: Sample) -> List[Problem]:
        problems = []
        for check in self.checks:
            try:
                problems += find_problems(sample, [check])
            except UnreadableField as error:
                problems.append(Problem(check[0], str(error)))
        return problems

    def _load(self, index: int) -> Union[Sample, Exception]:
        """Return a sample, or the exception that its pipeline raised."""
        # SeedSequence mixes both numbers, so that neighbouring seeds and
        # indices share no random numbers.
        seed = np.random.SeedSequence([self.seed, index]).generate_state(1)
        random.seed(int(seed[0]))
        np.random.seed(seed)
        # torch.manual_seed() formats the stack for devices that load no data.
        torch.default_generator.manual_seed(int(seed[0]))
        # Cleared in place: the transforms hold this list as their listener.
        self._reported.clear()
        try:
            sample = self.dataset[index]
        except UnreadableField as error:
            return error
        except GuardConfigError:
            # A mistake in the config concerns all samples and ends the audit.
            raise
        except Exception as error:  # a user's pipeline: whatever it raises
            return error
        if isinstance(sample, Mapping):
            return sample
        # A pipeline may pack a sample as a tuple, which has no keys.
        return {'sample': sample}

    def _name(self, index: int) -> Optional[str]:
        """Return a sample's name from the annotations.

        The pipeline may drop the keys that name a sample.
        """
        try:
            return sample_name(self.dataset.get_data_info(index))
        except Exception:  # no annotations, or unreadable ones
            return None

    def _summary(self, sample: Sample, key: str) -> Optional[Summary]:
        try:
            return summarized(sample, key)
        except UnreadableField:
            return None


def summarized(sample: Sample, key: str) -> Summary:
    """Return the summary of a sample's field.

    Raises:
        UnreadableField: If the sample has no such field, or an expression
            fails.
    """
    try:
        return summary([array for _, array in numbers(sample, key)])
    except GuardConfigError:
        raise
    except Exception as error:  # an expression: whatever it raises
        raise UnreadableField(
            f"'{key}' fails: {type(error).__name__}: {error}."
        ) from error
