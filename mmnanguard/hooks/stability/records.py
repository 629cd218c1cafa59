"""The samples that a run keeps, and the errors that cost one."""

import logging
import math
from typing import Dict, Optional

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core.rows.event_files import events_file, samples_file
from mmnanguard.core.stability.sample import Sample

from .sample_file import SampleFile

__all__ = ['Records']


class Records:
    """Writes samples to their file and to the scalars; never raises.

    Args:
        runner: The runner.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._file = SampleFile(samples_file(events_file(runner.log_dir)))
        self._has_lost = self._has_failed = False

    def add(self, sample: Sample) -> None:
        """Write a sample."""
        try:
            self._add_scalars(sample)
            if is_main_process():
                self._file.add(sample)
        except Exception as error:
            if not self._has_lost:
                self._has_lost = True
                say(
                    'mmnanguard: cannot write stability.jsonl or its '
                    f'scalars: {type(error).__name__}: {error}; training '
                    'goes on (said once)',
                    logging.ERROR,
                    self._runner.logger,
                )

    def add_failure(self, failure: str) -> None:
        """Log the first sample that was left out.

        Args:
            failure: The error; '' if there is none.
        """
        if failure and not self._has_failed:
            self._has_failed = True
            say(
                'mmnanguard: StabilityMonitorHook left out a sample: '
                f'{failure}; training goes on, and the next samples are '
                'tried (said once)',
                logging.WARNING,
                self._runner.logger,
            )

    def _add_scalars(self, sample: Sample) -> None:
        scalars: Dict[str, Optional[float]] = {
            'headroom_bits': sample.least_bits,
            'update_ratio': sample.update_ratio,
            'attention_logits': max(sample.logits.values(), default=None),
            'scaled_grad': sample.scaled_grad,
        }
        # Not by the message hub, whose scalars are in each line of the log.
        self._runner.visualizer.add_scalars(
            {
                f'stability/{name}': value
                for name, value in scalars.items()
                if value is not None and math.isfinite(value)
            },
            step=sample.iter,
        )
