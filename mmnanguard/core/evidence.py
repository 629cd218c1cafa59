"""All that is known about a group of rejected updates."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Collection, Dict, List, Optional, Sequence, Tuple

from .causes import facts_of_cause
from .culprit import samples_at_fault, suspects_among
from .rows.autopsy import Autopsy
from .rows.guard_event import GuardEvent
from .rows.input_row import InputRow
from .rows.json_numbers import JsonObject
from .rules.recent_commits import Growth
from .step_advice import impossible_settings, uphill_settings

__all__ = ['Evidence']

LEAST_BATCHES = 3
MOST_OF = 0.5
MOST_FEW = 3  # samples that can be looked at one by one


@dataclass(frozen=True)
class Evidence:
    """All that is known about a trouble, which is a group of rejections.

    Attributes:
        cause: The value of the most frequent cause.
        events: The rejected updates, oldest first.
        autopsies: The autopsies of these updates, or of earlier updates that
            had the same cause.
        inputs: The findings on their inputs.
        share: The share of rejected updates in the trouble.
    """

    cause: str
    events: Sequence[GuardEvent] = ()
    autopsies: Sequence[Autopsy] = ()
    inputs: Sequence[InputRow] = ()
    share: float = 1.0

    @property
    def has_scale(self) -> bool:
        """Whether the last update had a loss scale."""
        return not self.events or self.events[-1].loss_scale is not None

    @property
    def has_float16(self) -> bool:
        """Whether the last update is known to have had a loss scale."""
        return bool(self.events) and self.events[-1].loss_scale is not None

    @property
    def has_finite_loss(self) -> bool:
        """Whether the loss of the last update was finite."""
        return bool(self.events) and math.isfinite(self.events[-1].loss)

    @property
    def uphill(self) -> Sequence[str]:
        """The settings of the optimizer that make weights grow, in words."""
        return uphill_settings(self.events[-1].step if self.events else None)

    @property
    def impossible(self) -> Sequence[str]:
        """The settings with which no training can go well, in words."""
        step = self.events[-1].step if self.events else None
        return impossible_settings(step)

    @property
    def growth(self) -> Optional[Growth]:
        """The explosion before the last streak, if there was one.

        A run that went on after a streak had not exploded.
        """
        growth = None
        for event in self.events:
            if event.consecutive_skips <= 1:
                growth = None
            if growth is None and event.growth is not None:
                growth = read_growth(event.growth)
        return growth

    @property
    def since(self) -> Optional[int]:
        """The iteration at which the last streak began, if it is known."""
        return self.events[-1].since if self.events else None

    @property
    def finding(self) -> Optional[Autopsy]:
        """The first autopsy that saw where the fault begins.

        A cure counts only if it has helped wherever it was tried.
        """
        for autopsy in self.autopsies:
            if autopsy.repeats and autopsy.phase:
                return with_all_trials(autopsy, self.autopsies)
        return None

    def finding_without(self, samples: Collection[str]) -> Optional[Autopsy]:
        """Return the first autopsy of an operation in other batches, if any.

        Args:
            samples: The samples that none of these batches holds.
        """
        others = []
        for event in self.events:
            if event.samples and set(samples).isdisjoint(event.samples):
                others.append(event.id)
        for autopsy in self.autopsies:
            # Bad inputs and weights have no operation.
            if autopsy.repeats and autopsy.op and autopsy.id in others:
                return autopsy
        return None

    @property
    def is_of_inputs(self) -> bool:
        """Whether a check or an autopsy found the fault in the inputs."""
        if facts_of_cause(self.cause).is_of_inputs:
            return True
        return self.finding is not None and self.finding.phase == 'input'

    def masked_keys(self) -> Tuple[str, ...]:
        """Return the bad parts of batches that did no harm in a replay."""
        if not self.autopsies or any(row.repeats for row in self.autopsies):
            return ()
        keys: Dict[str, None] = {}  # an ordered set
        for row in self.autopsies:
            keys.update(dict.fromkeys(row.keys))
        return tuple(keys)

    def samples(self) -> Tuple[str, ...]:
        """Return the samples at fault."""
        names = self._named()
        # The code that makes them is at fault.
        return () if self.is_of_random_samples else names

    def with_bad_inputs(self, names: Collection[str]) -> Tuple[str, ...]:
        """Return those of the samples whose input was not finite."""
        bad = set(chain.from_iterable(row.samples for row in self.inputs))
        for autopsy in self.autopsies:
            if autopsy.phase == 'input':
                bad.update(autopsy.samples)
        return tuple(name for name in names if name in bad)

    def _named(self) -> Tuple[str, ...]:
        """Return the samples that checks and autopsies name."""
        names: List[str] = []
        # The loss leaves their bad elements out, if too late.
        if self.finding is not None and self.finding.is_left_out:
            return ()
        # An operation that went bad by itself clears the inputs, which may
        # hold NaN that the model masks on purpose.
        if self.is_of_inputs or self.finding is None:
            for row in self.inputs:
                names.extend(row.samples)
        batches = self.batches()
        names += samples_at_fault(self.autopsies, batches, self.share)
        return tuple(dict.fromkeys(names))

    @property
    def is_of_most_samples(self) -> bool:
        """Whether most samples of a run, as far as seen, are bad inputs.

        The code that makes them is at fault then. A few batches do not tell,
        and after many good ones, it is the data that changed.
        """
        batches = self.batches()
        if not self.is_of_inputs or len(batches) < LEAST_BATCHES:
            return False
        first, last = self.events[0].iter, self.events[-1].iter
        is_early = first <= MOST_OF * last and self.share > MOST_OF
        seen = set(chain.from_iterable(batches))
        bad = seen.intersection(self._named())
        return (
            is_early
            and len(bad) > MOST_OF * len(seen)
            and not self.masked_keys()
        )

    @property
    def is_of_random_samples(self) -> bool:
        """Whether bad inputs were fine when their samples came again.

        Most of the samples that came again have to be fine then. An
        augmentation makes such inputs, and no file that is to be mended.
        """
        if not self.is_of_inputs:
            return False
        rows = {row.id: row for row in self.inputs}
        seen: List[str] = []
        bad: List[str] = []
        for event in self.events:
            row = rows.get(event.id)
            # A row names samples up to a limit.
            if row is not None and row.num_samples <= len(row.samples):
                seen += set(event.samples)
                bad += set(row.samples)
        num_seen, num_bad = Counter(seen), Counter(bad)
        again = [name for name in num_bad if num_seen[name] > 1]
        fine = [name for name in again if num_bad[name] < num_seen[name]]
        return len(fine) > MOST_OF * len(again)

    @property
    def bad_share(self) -> float:
        """The share of samples with bad inputs since the first of them.

        Zero if bad inputs are unknown, or if their samples are so few that
        each can be looked at.
        """
        rows = {row.id: row for row in self.inputs}
        num_seen, num_bad = 0, 0
        for event in self.events:
            if event.id in rows:
                num_seen += len(event.samples)
                num_bad += rows[event.id].num_samples
        if num_seen == 0 or len(self._named()) <= MOST_FEW:
            return 0.0
        return self.share * num_bad / num_seen

    def batches(self) -> List[Tuple[str, ...]]:
        """Return the names of the samples of each rejected update."""
        batches = []
        for event in self.events:
            if facts_of_cause(event.cause.value).is_of_batch:
                batches.append(event.samples)
        return batches

    def suspects(self) -> Tuple[str, ...]:
        """Return samples of which each rejected batch holds one."""
        return suspects_among(self.batches(), self.share)

    def bad_keys(self) -> Tuple[str, ...]:
        """Return the parts of the batches that were not finite."""
        keys: List[str] = []
        for row in self.inputs:
            keys.extend(row.keys)
        # An event names the larger parts only.
        if keys:
            return tuple(dict.fromkeys(keys))
        for event in self.events:
            keys.extend(event.bad_keys)
        return tuple(dict.fromkeys(keys))


def read_growth(saved: JsonObject) -> Optional[Growth]:
    """Return the growth of a row; None if another version wrote it."""
    try:
        return Growth(**saved)
    except TypeError:
        return None


def with_all_trials(finding: Autopsy, autopsies: Sequence[Autopsy]) -> Autopsy:
    """Return a finding with the trials of all autopsies of its operation.

    What helped once and did not another time is no cure. Which samples are
    left out is a matter of each batch.
    """
    tried = dict(finding.tried)
    for autopsy in autopsies:
        is_alike = (autopsy.phase, autopsy.op) == (finding.phase, finding.op)
        if not (autopsy.repeats and is_alike):
            continue
        for cure in tried.keys() & autopsy.tried.keys():
            is_own = cure == 'module_fp32' and autopsy.module != finding.module
            if cure != 'without_samples' and not is_own:
                tried[cure] &= autopsy.tried[cure]
    remedy = finding.remedy if tried.get('module_fp32', True) else ''
    fp32_is_finite = finding.fp32_is_finite
    if not tried.get('fp32', True):
        fp32_is_finite = False
    return replace(
        finding, tried=tried, remedy=remedy, fp32_is_finite=fp32_is_finite
    )
