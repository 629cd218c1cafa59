"""The hook that saves rejected updates, for a replay in another process."""

import logging
from itertools import chain
from pathlib import Path
from typing import List, Optional, Tuple, Union

from mmengine.dist import all_gather_object, get_rank
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard.core import Action, GuardConfigError, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value
from mmnanguard.core.older_checkpoint import older_checkpoint
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.event_files import DUMPS_FOLDER
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.registry import HOOKS

from .batch_dump import Dump, collect, save_whole, size_of, weights_of
from .plain_config import parse_config
from .window import Window, WindowHook

__all__ = ['BatchDumpHook']

AUTO_BYTES = 256 * 2**20  # weights that 'auto' saves


@HOOKS.register_module()
class BatchDumpHook(WindowHook):
    """Writes rejected updates to files, for a replay in another process.

    Each rank on which the update went bad writes
    ``<runner.log_dir>/nanguard/dumps/iter_<iteration>_rank<rank>.pt``: the
    window's batches as the data loader returned them, random states, the
    event, the config, versions, and by option the weights.
    ``tools/replay.py`` runs the update again.

    The file loads with ``weights_only=True``. Objects that are neither
    tensors, arrays nor data elements are pickled into bytes and named in the
    log. The file appears whole or not at all, and a disk that is full costs
    the dump, not the run.

    Args:
        max_dumps: Largest number of dumps by this process on each rank.
        max_megabytes: Largest size of the tensors of a dump. A larger dump is
            not written.
        save_weights: Whether the dump has the model's weights and buffers
            too, as they were before the update. 'auto' saves them if they
            are not sharded, take up to 256 MiB and fit into
            ``max_megabytes``.
        overflows: Whether routine overflows of the loss scale are dumped too.

    Raises:
        GuardConfigError: If a limit is no positive number; at the start of
            training, if ``save_weights`` is set and the weights are sharded.
    """

    def __init__(
        self,
        max_dumps: int = 5,
        max_megabytes: float = 1024,
        save_weights: Union[bool, str] = False,
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
        check_value(
            save_weights in (False, True, 'auto'),
            'BatchDumpHook.save_weights',
            save_weights,
            "False, True or 'auto'",
        )
        self._num_left = max_dumps
        self._max_bytes = max_megabytes * 2**20
        self._save_weights = save_weights
        self._overflows = overflows

    def before_train(self, runner: Runner) -> None:
        """Refuse to save weights that are sharded."""
        # A rank has only its shard, of which no model could be built again.
        if self._save_weights is True and is_sharded(runner.model):
            raise GuardConfigError(
                'BatchDumpHook.save_weights: the weights are sharded over '
                'ranks, and a dump is of one rank. Leave it out, and give '
                'tools/replay.py a --checkpoint.'
            )

    @property
    def is_spent(self) -> bool:
        """Whether this rank has written all its dumps."""
        return self._num_left == 0

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Dump the window on the ranks that went bad.

        Collective: rank 0 writes the rows of all ranks' dumps.
        """
        # A committed update has changed the weights, so the window cannot be
        # run again from where it began.
        if event.action is Action.STEP:
            return
        # The cause built up over many updates, and no batch is at fault.
        if CAUSES[event.cause].is_gradual:
            return
        if event.is_routine and not self._overflows:
            return
        dump = None
        if get_rank() in event.ranks and self._window and self._num_left:
            self._num_left -= 1
            dump = self._write(runner, event, self._window)
        for record in filter(None, all_gather_object(dump)):
            runner.call_hook('after_guard_row', row=record.to_row())

    def _write(
        self, runner: Runner, event: GuardEvent, window: Window
    ) -> Optional[DumpRow]:
        """Write the dump and return its record, or None if writing failed."""
        name = f'iter_{event.iter}_rank{get_rank()}.pt'
        path = Path(runner.log_dir, DUMPS_FOLDER, name)
        try:
            dump, pickled, lost = collect(runner, event, window)
            if self._saves_weights(runner.model, size_of(dump)):
                dump['weights'] = weights_of(runner.model)
            size = save_whole(dump, path, self._max_bytes)
        except Exception as error:
            # Mostly an OSError. Any other error is caught too, because a
            # dump is not worth a run, and because other ranks wait for this
            # rank in all_gather_object().
            say(
                f'mmnanguard: cannot write {path} '
                f'({type(error).__name__}: {error}); training goes on, this '
                'dump is lost',
                logging.ERROR,
                runner.logger,
            )
            return None
        needs, remarks = review(dump, pickled, lost)
        checkpoint = None
        if 'checkpoint' in needs:
            checkpoint = older_checkpoint(
                Path(runner.work_dir), event.iter, event.epoch, event.batch_idx
            )
        record = DumpRow(
            event.id,
            get_rank(),
            str(path),
            size,
            needs,
            checkpoint,
            tuple(remarks),
        )
        say(record.line(), logging.WARNING, runner.logger)
        return record

    def _saves_weights(self, model: nn.Module, batch_size: int) -> bool:
        """Whether a dump gets the weights.

        Args:
            model: The model.
            batch_size: Bytes of the dump without weights.
        """
        if self._save_weights != 'auto':
            return bool(self._save_weights)
        if is_sharded(model):
            return False
        size = size_of(list(chain(model.parameters(), model.buffers())))
        return size <= min(AUTO_BYTES, self._max_bytes - batch_size)


def review(
    dump: Dump, pickled: List[str], lost: List[str]
) -> Tuple[Tuple[str, ...], List[str]]:
    """List the shortcomings of a dump.

    The user learns it now, while the config and a checkpoint of that moment
    are still at hand.

    Args:
        dump: The dump that was written.
        pickled: The types of the objects that had to be pickled.
        lost: The types of the objects that are kept as text only.

    Returns:
        The options that the replay needs ('config', 'checkpoint'), and
        remarks for the log.
    """
    remarks, needs = [], []
    if pickled:
        listed = ', '.join(pickled)
        remarks.append(f'to read its {listed} takes --allow-pickle')
    if lost:
        listed = ', '.join(lost)
        remarks.append(f'of {listed}, only the text could be kept')
    # A replay reads the config as data, and runs none of its text.
    try:
        parse_config(dump['config'])
    except ValueError as error:
        needs.append('config')
        remarks.append(f'its config {error}, so it takes another')
    if 'weights' not in dump:
        needs.append('checkpoint')
        remarks.append('without weights, it takes those of a checkpoint')
    return tuple(needs), remarks
