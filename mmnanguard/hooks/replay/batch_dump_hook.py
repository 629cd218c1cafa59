"""The hook that saves rejected updates, to be run again elsewhere."""

from pathlib import Path
from typing import Optional

from mmengine.dist import all_gather_object, get_rank
from mmengine.runner import Runner

from mmnanguard.core import Action, GuardConfigError, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.event_files import DUMPS_FOLDER
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.registry import HOOKS

from .batch_dump import collect, save_whole, weights_of
from .plain_config import parse_config
from .window import Window, WindowHook

__all__ = ['BatchDumpHook']


@HOOKS.register_module()
class BatchDumpHook(WindowHook):
    """Writes all that it takes to run a rejected update again elsewhere, to
    ``<runner.log_dir>/nanguard/dumps/iter_<iteration>_rank<rank>.pt``.

    Of each rank on which the update went bad: the window's batches as the
    data loader gave them, random states, the event, the config, versions,
    and by option the weights. ``tools/replay.py`` runs it again. The file
    loads with ``weights_only=True``; objects that are neither tensors, arrays
    nor data elements are in it as pickles, and named in the log. It appears
    whole or not at all, and a disk that is full costs the dump, not the run.

    Args:
        max_dumps: In this process, on each rank.
        max_megabytes: Of one file's tensors; a larger one is not written.
        save_weights: Also the model's weights and buffers, as they were.
        overflows: Also of routine overflows of the loss scale.

    Raises:
        GuardConfigError: If a limit is no positive number; at the start of
            training, if weights are asked for that are spread over ranks.
    """

    def __init__(
        self,
        max_dumps: int = 5,
        max_megabytes: float = 1024,
        save_weights: bool = False,
        overflows: bool = False,
    ) -> None:
        for name, value in (
            ('max_dumps', max_dumps),
            ('max_megabytes', max_megabytes),
        ):
            if not (isinstance(value, (int, float)) and value > 0):
                raise GuardConfigError(
                    f'BatchDumpHook.{name} is {value!r}: it must be a number '
                    'above 0; to switch dumps off, leave the hook out.'
                )
        self._num_left = max_dumps
        self._max_bytes = max_megabytes * 2**20
        self._save_weights = save_weights
        self._overflows = overflows

    def before_train(self, runner: Runner) -> None:
        if self._save_weights and is_sharded(runner.model):
            raise GuardConfigError(
                'BatchDumpHook.save_weights: the weights are spread over '
                'ranks, and a dump is of one rank. Leave it out, and give '
                'tools/replay.py a --checkpoint.'
            )

    @property
    def is_spent(self) -> bool:
        return self._num_left == 0

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Collective, for the rows."""
        if event.action is Action.STEP:  # weights are no longer those
            return
        if CAUSES[event.cause].is_gradual:  # no batch is at fault
            return
        if event.is_routine and not self._overflows:
            return
        dump = None
        if get_rank() in event.ranks and self._window and self._num_left:
            self._num_left -= 1
            dump = self._write(runner, event, self._window)
        for written in all_gather_object(dump):
            if written is not None:
                runner.call_hook('after_guard_row', row=written.to_row())

    def _write(
        self, runner: Runner, event: GuardEvent, window: Window
    ) -> Optional[DumpRow]:
        """Write the dump and return its record; None if that failed."""
        name = f'iter_{event.iter}_rank{get_rank()}.pt'
        path = Path(runner.log_dir, DUMPS_FOLDER, name)
        try:
            dump, pickled, lost = collect(runner, event, window)
            if self._save_weights:
                dump['weights'] = weights_of(runner.model)
            size = save_whole(dump, path, self._max_bytes)
        except Exception as error:
            # OSError as a rule, but no dump is worth a run, nor ranks that
            # wait for this one.
            runner.logger.error(
                f'mmnanguard: cannot write {path} '
                f'({type(error).__name__}: {error}); training goes on, this '
                'dump is lost'
            )
            return None
        remarks, needs = [], []
        if pickled:
            listed = ', '.join(pickled)
            remarks.append(f'to read its {listed} takes --allow-pickle')
        if lost:
            listed = ', '.join(lost)
            remarks.append(f'of {listed}, only the text could be kept')
        try:
            parse_config(dump['config'])
        except ValueError as error:
            needs.append('config')
            remarks.append(f'its config {error}, so it takes another')
        if 'weights' not in dump:
            needs.append('checkpoint')
            remarks.append('without weights, it takes those of a checkpoint')
        record = DumpRow(event.id, get_rank(), str(path), size, tuple(needs))
        runner.logger.warning(record.line(remarks))
        return record
