import logging
from typing import Any, List, Mapping, Optional, Sequence, Union

from mmengine.logging import print_log

from mmnanguard._support.sample_validator import SampleValidator
from mmnanguard.core import NanGuardError
from mmnanguard.core.checks import check_value
from mmnanguard.registry import TRANSFORMS

from ..bad_sample_record import BadSampleRecord
from ..fields import name_sample
from ..find_problems import Problem, build_checks, find_problems

try:
    from mmcv.transforms import BaseTransform
except ImportError:  # a pipeline of MMEngine alone takes any callable

    class BaseTransform:  # type: ignore
        def __call__(self, results: dict) -> Optional[dict]:
            return self.transform(results)  # type: ignore


__all__ = ['ValidateSample']

ACTIONS = ('drop', 'raise', 'tell')
MAX_TOLD = 20  # samples that one process tells of one by one


@TRANSFORMS.register_module()
class ValidateSample(BaseTransform, SampleValidator):
    """Finds bad samples on their way to the model.

    Looks at what the transforms before it have left in ``results`` and
    changes nothing. A bad sample is said once, at WARNING, with its name and
    what is wrong, and goes into ``record``, from worker processes too.
    ``BadSamplesHook`` brings that into the run's log.

    Args:
        checks: What must hold, such as
            ``dict(type='Range', key='norm_scale', min=1., max=200.)``: a type
            of :mod:`~mmnanguard.datasets.checks`, or a function that is
            registered in ``mmnanguard.registry.CHECKS``. It is called with
            ``results`` and the dict's other items, and returns None or a text
            that says what is wrong.
        action: With a bad sample: 'drop' it, and a dataset of MMEngine that
            is not in test mode takes another one at random; 'raise' an error,
            which ends the run; 'tell', and keep it.

    Raises:
        GuardConfigError: For an argument that is not allowed; in a pipeline,
            for a sample that lacks a check's key.
        NanGuardError: In a pipeline, with the action 'raise'.
    """

    def __init__(
        self,
        checks: Sequence[Union[str, Mapping[str, Any]]],
        action: str = 'drop',
    ) -> None:
        allowed = f'one of {ACTIONS}'
        check_value(
            action in ACTIONS, 'ValidateSample.action', action, allowed
        )
        self.checks = build_checks(checks, 'ValidateSample.checks')
        self.action = action
        self.record: BadSampleRecord = BadSampleRecord()
        # Given by an audit: takes the problems in place of the action.
        self.listener: Optional[List[Problem]] = None
        self._num_told = 0

    def transform(self, results: dict) -> Optional[dict]:
        problems = find_problems(results, self.checks)
        if self.listener is not None:
            self.listener += problems
        elif problems:
            name = name_sample(results) or 'without a name'
            story = '; '.join(map(str, problems))
            if self.action == 'raise':
                raise NanGuardError(
                    f'Sample {name} is bad: {story}. Mend it, or leave it '
                    'out with mmnanguard.ExcludeSamples or '
                    "ValidateSample(action='drop')."
                )
            self._tell(name, story)
            return None if self.action == 'drop' else results
        return results

    def _tell(self, name: str, story: str) -> None:
        try:
            is_new = self.record.add(name, story)
        except OSError as error:  # costs the record, not the run
            is_new, story = True, f'{story}; not recorded: {error}'
        if not is_new or self._num_told > MAX_TOLD:
            return
        self._num_told += 1
        what = 'left out' if self.action == 'drop' else 'kept'
        told = f'ValidateSample: {name} is bad: {story}; it is {what}'
        if self._num_told > MAX_TOLD:
            told = 'ValidateSample: this process tells of no more samples'
        print_log(f'mmnanguard: {told}', 'current', logging.WARNING)

    def __repr__(self) -> str:
        names = ', '.join(name for name, _ in self.checks)
        return f"ValidateSample([{names}], action='{self.action}')"
