"""The hook that writes a run's rows to ``events.jsonl``."""

import json
import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Dict, Iterator

from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard._support.process_identity import this_process
from mmnanguard.core import Action, GuardEvent
from mmnanguard.core.launch import near, tool_command
from mmnanguard.core.rows.end_row import CRASHED, FINISHED, INTERRUPTED, EndRow
from mmnanguard.core.rows.event_files import events_file, events_files
from mmnanguard.core.rows.halt_row import HaltRow
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.rows.phrases import plural
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.start_row import StartRow
from mmnanguard.core.rules.loss_span import loss_span
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_guards, find_wrappers, guard_facts
from .._shared.guard_listener import GuardListener
from .._shared.hook_arguments import Row
from .._shared.launch import launcher_of, local_world_size, lr_factor_of
from .._shared.patches import PatchingHook, error_of_run
from .._shared.roles import find_source
from .._shared.versions import versions
from .crash import bad_params, find_bad_inputs

__all__ = ['EventLogHook', 'last_attempt']

# Bytes of a line that are read at once. The row of a start is much shorter.
MAX_LINE = 2**20


@HOOKS.register_module()
class EventLogHook(PatchingHook, GuardListener):
    """Writes ``<runner.log_dir>/nanguard/events.jsonl``.

    The file begins with a row of kind 'start' and has one row of strict JSON
    per event. Each row is written and closed at once, so that a killed
    process loses none. A row of kind 'end' says that training finished, or
    which exception ended it, and what was not finite in that iteration. A
    work dir that is full, read-only or gone costs rows, not the run, which the
    log says once.

    Needs ``NanGuardHook``, which hands out the events. Writes on rank 0 only.
    """

    priority = 'NORMAL'

    def __init__(self) -> None:
        super().__init__()
        self._num_lost = self._num_rejected = 0
        self._is_validating = False

    def before_train(self, runner: Runner) -> None:
        """Write the row of kind 'start'."""
        self.path = events_file(runner.log_dir)
        self._num_lost = self._num_rejected = 0
        self._is_validating = self._is_halted = False
        guards = find_guards(runner)
        source = find_source(runner)
        if source is None:
            say(
                'mmnanguard: EventLogHook gets no events without '
                'NanGuardHook. Add default_hooks=dict(nan_guard=dict('
                "type='mmnanguard.NanGuardHook')).",
                logging.ERROR,
                runner.logger,
            )
        # All guards have the id of the run. Without a guard there is none.
        first = next(iter(guards.values()), None)
        run, attempt = '', 1
        if first is not None:
            run, attempt = first.run, first.attempt
        start = StartRow(
            run=run,
            attempt=attempt,
            # Rows count iterations from 1, the runner from 0.
            iter=runner.iter + 1,
            max_iters=runner.max_iters,
            versions=versions(),
            guards=dict(zip(guards, map(guard_facts, guards.values()))),
            unguarded=unguarded_types(runner),
            launcher=launcher_of(runner),
            ranks=get_world_size(),
            ranks_per_node=local_world_size(),
            lr_factor=lr_factor_of(runner),
            process=this_process(),
        )
        if source is not None:
            start = start.replace(
                loaded=source.loaded, loaded_bad=source.loaded_bad
            )
        self._write(runner, start.to_row())
        self.patches.remember(partial(self._end, runner))

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Write the row of an event."""
        is_rejected = event.action is not Action.STEP
        self._num_rejected += is_rejected and not event.is_routine
        self._write(runner, event.to_row())

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Write the row of another hook."""
        if row['kind'] == HaltRow.KIND:
            self._is_halted = True
        self._write(runner, row)

    def before_val(self, runner: Runner) -> None:
        self._is_validating = True

    def after_val(self, runner: Runner) -> None:
        self._is_validating = False

    def _end(self, runner: Runner) -> None:
        """Write the row of kind 'end', however training ended."""
        # The row of a halt says more.
        if not self._is_halted:
            error = error_of_run(runner)
            how = FINISHED
            if error:
                how = CRASHED
            # sys.exit() is how some hooks and signal handlers end a run.
            if error.startswith(('KeyboardInterrupt', 'SystemExit')):
                how = INTERRUPTED
            # The iteration that is over is still counted as the present one
            # until its hooks are done; a validation comes after that.
            iteration = runner.iter
            if error and not self._is_validating:
                iteration += 1
            iteration = min(iteration, runner.max_iters)
            first_losses, last_losses = {}, {}
            for name, guard in find_guards(runner).items():
                state = guard.state
                span = loss_span(state.first_losses, state.recent_commits)
                if span is not None:
                    first_losses[name], last_losses[name] = span
            row = EndRow(how, iteration, error, first_losses, last_losses)
            if how == CRASHED:
                row = self._explain(runner, row)
            self._write(runner, row.to_row())
        if self._num_rejected:
            # The lines of the updates are far above, and none sums them up.
            command = tool_command('report', near(runner.work_dir))
            updates = plural('update', self._num_rejected)
            say(
                f'mmnanguard: {self._num_rejected} {updates} rejected; what '
                f'did it, and what to do:\n  {command}',
                logging.WARNING,
                runner.logger,
            )
        if self._num_lost:
            say(
                f'mmnanguard: {self._num_lost} rows of {self.path} are lost',
                logging.ERROR,
                runner.logger,
            )

    def _explain(self, runner: Runner, end: EndRow) -> EndRow:
        """Return the row of a crash with the bad numbers that it met; syncs.

        Code that checks its numbers itself raises where the guard would have
        named them.
        """
        source = find_source(runner)
        # None after the iteration, and in a validation.
        if source is None or source.batch is None:
            return end
        batch_idx, data_batch = source.batch
        # After an error of the device, nothing can be read.
        with suppress(Exception):
            end = end.replace(
                bad_params=bad_params(runner.model),
                bad_inputs=find_bad_inputs(data_batch, batch_idx),
            )
        if end.bad_numbers():
            say(end.line(), logging.ERROR, runner.logger)
        return end

    def _write(self, runner: Runner, row: Row) -> None:
        """Append a row to the file, on rank 0 only."""
        if not is_main_process():
            return
        try:
            line = to_json(row).encode() + b'\n'
            # Again for each row: the folder may have been removed.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew for each row, so that nothing waits in a buffer when
            # the process is killed.
            with open(self.path, 'a+b') as file:
                file.write(line_end(file) + line)
        # The row of a user's hook may hold what is no JSON, which raises
        # whatever its objects raise.
        except Exception as error:
            self._num_lost += 1
            if self._num_lost == 1:
                story = f'{type(error).__name__}: {error}'
                say(
                    f'mmnanguard: cannot write a row of kind '
                    f"'{row.get('kind')}' to {self.path} "
                    f'({escape(story)}); training goes on, this row is lost '
                    '(said once)',
                    logging.ERROR,
                    runner.logger,
                )


def unguarded_types(runner: Runner) -> Dict[str, str]:
    """Return the type of each wrapper without a guard, by optimizer."""
    guards, types = find_guards(runner), {}
    for name, wrapper in find_wrappers(runner).items():
        if name not in guards:
            types[name] = type(wrapper).__name__
    return types


def line_end(file: BinaryIO) -> bytes:
    """Return the line end that a killed process did not write, or nothing.

    Two attempts that start in the same second write to the same file.
    """
    if file.seek(0, os.SEEK_END) == 0:
        return b''
    file.seek(-1, os.SEEK_END)
    has_line_end = file.read(1) == b'\n'
    return b'' if has_line_end else b'\n'


def last_attempt(work_dir: str, run: str) -> int:
    """Return the number of the run's newest attempt that left a row, or 0.

    The number in a checkpoint is not enough: two attempts may resume from the
    same checkpoint. The files are read line by line, on one rank only; a file
    that cannot be read counts as empty.

    Args:
        work_dir: The folder of all attempts.
        run: The id of the run.
    """
    last = 0
    for path in events_files(work_dir):
        try:
            for start in starts_in(path):
                if start.run == run:
                    last = max(last, start.attempt)
        except OSError:
            continue
    return last


def starts_in(path: Path) -> Iterator[StartRow]:
    """Yield the rows of kind 'start' of a file, in little memory."""
    with path.open('rb') as file:
        while True:
            # A bound, because a damaged file may have no line ends.
            line = file.readline(MAX_LINE)
            if not line:
                return
            # Cheaper than to parse each line: a file may have many events.
            if b'"start"' not in line:
                continue
            try:
                row = json.loads(line)
            except (RecursionError, ValueError):
                # A killed process has written half a line.
                continue
            record = None
            if isinstance(row, dict):
                record = record_of(row)
            if isinstance(record, StartRow):
                yield record
