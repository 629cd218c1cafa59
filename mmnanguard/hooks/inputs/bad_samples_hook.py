from typing import Dict, List

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard._support.dataset_parts import dataset_parts
from mmnanguard._support.sample_validator import SampleValidator
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.registry import HOOKS

from .._shared.hook_arguments import DataBatch, Outputs

__all__ = ['BadSamplesHook']

MAX_TOLD = 5  # samples in a line
DONE = {'drop': 'left out', 'tell': 'kept'}


@HOOKS.register_module()
class BadSamplesHook(Hook):
    """Tells in the run's log of the samples that ``ValidateSample`` found.

    Their names, reasons and number, from worker processes and from all
    ranks: in one line whenever there are new ones, and as the scalar
    ``train/guard/bad_samples``, the number of samples so far in this process.
    Looks every ``interval`` iterations, with several ranks by an exchange, and
    when training ends. Loaders fetch ahead, so a sample is told of before its
    turn.

    Args:
        interval: In iterations.

    Raises:
        GuardConfigError: For an argument that is not allowed.
    """

    priority = 'ABOVE_NORMAL'  # before LoggerHook

    def __init__(self, interval: int = 100) -> None:
        is_right = is_count(interval, least=1)
        where = 'BadSamplesHook.interval'
        check_value(is_right, where, interval, 'an integer of 1 or more')
        self.interval = interval
        self._told: Dict[str, str] = {}

    def before_train(self, runner: Runner) -> None:
        if not find_validators(runner):
            runner.logger.warning(
                'mmnanguard: BadSamplesHook finds no ValidateSample in the '
                'training pipeline. Add dict(type='
                "'mmnanguard.ValidateSample', checks=[dict(type='Finite')])."
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._tell(runner)

    def after_train(self, runner: Runner) -> None:
        self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        own = {
            name: f'{story}; {DONE[validator.action]}'
            for validator in find_validators(runner)
            for name, story in validator.record.read().items()
            if name not in self._told
        }
        new: Dict[str, str] = {}
        for found in all_gather_object(own):
            new.update(found)
        self._told.update(new)
        hub = runner.message_hub
        hub.update_scalar('train/guard/bad_samples', len(self._told))
        if new:
            told = [f'{name}: {new[name]}' for name in sorted(new)]
            if told[MAX_TOLD:]:
                told[MAX_TOLD:] = [f'and {len(told) - MAX_TOLD} more']
            runner.logger.warning(
                f'mmnanguard: ValidateSample found {len(self._told)} bad '
                f'samples so far, {len(new)} of them new: {"; ".join(told)}'
            )


def find_validators(runner: Runner) -> List[SampleValidator]:
    """Return the validating transforms of the training pipeline.

    They are looked up each time, as other hooks exchange the pipeline.
    """
    parts = dataset_parts(runner.train_dataloader.dataset)
    return [part for part in parts if isinstance(part, SampleValidator)]
