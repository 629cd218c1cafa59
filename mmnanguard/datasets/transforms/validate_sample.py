"""A transform that checks the samples of a pipeline."""

import logging
from typing import Dict, List, Optional, Sequence

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard._support.sample_validator import SampleValidator
from mmnanguard.core import NanGuardError
from mmnanguard.core.checks import check_value
from mmnanguard.registry import TRANSFORMS

from ..bad_sample_record import BadSampleRecord
from ..fields import name_sample
from ..find_problems import CheckConfig, Problem, build_checks, find_problems

# A sample on its way through a pipeline.
Results = Dict[str, object]

try:
    from mmcv.transforms import BaseTransform
except ImportError:  # a pipeline of MMEngine alone takes any callable

    class BaseTransform:  # type: ignore[no-redef]
        """A transform with the call of mmcv's base class."""

        def __call__(self, results: Results) -> Optional[Results]:
            """Transform a sample."""
            return self.transform(results)

        def transform(self, results: Results) -> Optional[Results]:
            """Return the transformed sample, or None to drop it."""
            raise NotImplementedError


__all__ = ['ValidateSample']

ACTIONS = ('drop', 'raise', 'tell')
MAX_NAMED = 20  # samples that a process names in its log


@TRANSFORMS.register_module()
class ValidateSample(
    BaseTransform,  # type: ignore[misc]
    SampleValidator,
):
    """A transform that finds bad samples on their way to the model.

    It checks the output of the transforms before it and changes nothing. A
    bad sample is reported once, at WARNING, with its name and its problems,
    and is added to ``record``, from worker processes too. ``BadSamplesHook``
    copies the record into the run's log.

    Args:
        checks: The checks, such as
            ``dict(type='Range', key='norm_scale', min=1., max=200.)``: a type
            of :mod:`~mmnanguard.datasets.checks`, or a function that is
            registered in ``mmnanguard.registry.CHECKS``. It is called with
            ``results`` and the dict's other items, and returns None or a text
            that says what is wrong.
        action: The action on a bad sample: 'drop' it, and a dataset of
            MMEngine that is not in test mode takes another sample at random;
            'raise' an error, which ends the run; 'tell' to report the sample
            and keep it.

    Raises:
        GuardConfigError: For an argument that is not allowed; in a pipeline,
            for a sample that lacks a check's key.
        NanGuardError: In a pipeline, with the action 'raise'.
    """

    def __init__(
        self, checks: Sequence[CheckConfig], action: str = 'drop'
    ) -> None:
        allowed = f'one of {ACTIONS}'
        check_value(
            action in ACTIONS, 'ValidateSample.action', action, allowed
        )
        self.checks = build_checks(checks, 'ValidateSample.checks')
        self.action = action
        self.record: BadSampleRecord = BadSampleRecord()
        # An audit sets this list; then it receives the problems, and no action
        # follows.
        self.listener: Optional[List[Problem]] = None
        self._num_named = 0

    def transform(self, results: Results) -> Optional[Results]:
        """Return the sample, or None to drop it.

        Raises:
            NanGuardError: If the sample is bad and the action is 'raise'.
        """
        problems = find_problems(results, self.checks)
        if self.listener is not None:
            self.listener += problems
        elif problems:
            name = name_sample(results) or 'without a name'
            story = '; '.join(map(str, problems))
            if self.action == 'raise':
                raise NanGuardError(
                    f'Sample {escape(name)} is bad: {escape(story)}. Mend it, '
                    'or leave it out with mmnanguard.ExcludeSamples or '
                    "ValidateSample(action='drop')."
                )
            self._report(name, story)
            if self.action == 'drop':
                # MMEngine's datasets then take another sample at random.
                return None
        return results

    def _report(self, name: str, story: str) -> None:
        try:
            is_new = self.record.add(name, story)
        except OSError as error:
            # A full disk costs the record, not the run.
            is_new, story = True, f'{story}; not recorded: {error}'
        # A log with a line for each sample of a broken dataset helps nobody.
        if not is_new or self._num_named > MAX_NAMED:
            return
        self._num_named += 1
        outcome = 'kept'
        if self.action == 'drop':
            outcome = 'left out'
        message = f'ValidateSample: {name} is bad: {story}; it is {outcome}'
        if self._num_named > MAX_NAMED:
            message = 'ValidateSample: this process tells of no more samples'
        line = escape(f'mmnanguard: {message}')
        say(line, logging.WARNING)

    def __repr__(self) -> str:
        names = ', '.join(name for name, _ in self.checks)
        return f"ValidateSample([{names}], action='{self.action}')"
