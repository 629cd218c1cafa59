"""The hook that reports the samples that ``ValidateSample`` found."""

import logging
from typing import Collection, Dict, List

from mmengine.dist import all_gather_object
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard._support.console_line import fit, named
from mmnanguard._support.dataset_parts import dataset_parts
from mmnanguard._support.sample_validator import SampleValidator
from mmnanguard.core import GuardEvent
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.phrases import and_more
from mmnanguard.registry import HOOKS

from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.roles import SampleWitness

__all__ = ['BadSamplesHook']

# Samples in a console line, which has to stay readable.
NUM_NAMED = 5
OUTCOMES = {'drop': 'left out', 'tell': 'kept'}


@HOOKS.register_module()
class BadSamplesHook(SampleWitness):
    """Reports the samples that ``ValidateSample`` found, in the run's log.

    Collects the names, reasons and number of bad samples from worker
    processes and from all ranks. A console line reports them whenever there
    are new ones; the scalar ``train/guard/bad_samples`` is their number so
    far in this process. The hook asks every ``interval`` iterations and when
    training ends; with several ranks that is an exchange. Loaders fetch
    ahead, so a sample may be reported before its turn.

    Args:
        interval: Number of iterations from one report to the next.

    Raises:
        GuardConfigError: For an argument that is not allowed.
    """

    # Before LoggerHook, which writes the scalar in the same iteration.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 100) -> None:
        is_right = is_count(interval, least=1)
        where = 'BadSamplesHook.interval'
        check_value(is_right, where, interval, 'an integer of 1 or more')
        self.interval = interval
        self._reported: Dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        """Warn if no transform of the pipeline validates samples."""
        if not find_validators(runner):
            say(
                'mmnanguard: BadSamplesHook finds no ValidateSample in the '
                'training pipeline. Add dict(type='
                "'mmnanguard.ValidateSample', checks=[dict(type='Finite')]).",
                logging.WARNING,
                runner.logger,
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Report new bad samples at the end of an interval."""
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        """Report the bad samples since the last interval."""
        self._report(runner)

    def bad_samples(self, event: GuardEvent) -> Collection[str]:
        """Return the samples that were reported so far."""
        return self._reported

    def _report(self, runner: Runner) -> None:
        """Report the bad samples that are new on any rank; collective."""
        new: Dict[str, str] = {}
        # All ranks take part, also those without new samples.
        for rank_stories in all_gather_object(self._new_stories(runner)):
            new.update(rank_stories)
        self._reported.update(new)
        hub = runner.message_hub
        hub.update_scalar('train/guard/bad_samples', len(self._reported))
        if not new:
            return
        # Sorted, as the order in which workers finish is random.
        stories = list(map(': '.join, sorted(new.items())))
        start = (
            f'mmnanguard: ValidateSample found {len(self._reported)} bad '
            f'samples so far, {len(new)} of them new: '
        )
        forms = []
        for num in range(min(NUM_NAMED, len(stories)), 0, -1):
            listed = '; '.join(stories[:num])
            forms.append(f'{start}{listed}{and_more(len(stories) - num)}')
        others = and_more(len(stories) - 1)
        forms.extend(named(f'{start}{{}}{others}', min(new)))
        say(fit(forms), logging.WARNING, runner.logger)

    def _new_stories(self, runner: Runner) -> Dict[str, str]:
        """Return this rank's unreported samples, and what happened to each."""
        stories = {}
        for validator in find_validators(runner):
            outcome = OUTCOMES[validator.action]
            for name, story in validator.record.read().items():
                if name not in self._reported:
                    stories[name] = f'{story}; {outcome}'
        return stories


def find_validators(runner: Runner) -> List[SampleValidator]:
    """Return the validating transforms of the training pipeline."""
    # Searched anew for each report, because hooks such as mmdet's
    # PipelineSwitchHook exchange the pipeline.
    parts = dataset_parts(runner.train_dataloader.dataset)
    return [part for part in parts if isinstance(part, SampleValidator)]
