"""The hook that writes a run's rows to ``events.jsonl``."""

import json
import os
from typing import BinaryIO

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmnanguard.core import GuardEvent
from mmnanguard.core.rows.event_files import events_file, events_files
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.start_row import StartRow
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_guards, guard_facts
from .._shared.guard_listener import GuardListener
from .._shared.hook_arguments import Row
from .._shared.roles import EventSource, has_hook
from .._shared.versions import versions

__all__ = ['EventLogHook', 'last_attempt']


@HOOKS.register_module()
class EventLogHook(GuardListener):
    """Writes ``<runner.log_dir>/nanguard/events.jsonl``.

    The file begins with a row of kind 'start' and has one row of strict JSON
    per event. Each row is written and closed at once, so that a killed
    process loses none. A disk that is full costs rows, not the run.

    Needs ``NanGuardHook``, which hands out the events. Writes on rank 0 only.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Write the row of kind 'start'."""
        self.path = events_file(runner.log_dir)
        if is_main_process():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        guards = find_guards(runner)
        if not has_hook(runner, EventSource):
            runner.logger.error(
                'mmnanguard: EventLogHook gets no events without '
                'NanGuardHook. Add default_hooks=dict(nan_guard=dict('
                "type='mmnanguard.NanGuardHook'))."
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
        )
        self._write(runner, start.to_row())

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Write the row of an event."""
        self._write(runner, event.to_row())

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Write the row of another hook."""
        self._write(runner, row)

    def _write(self, runner: Runner, row: Row) -> None:
        """Append a row to the file, on rank 0 only."""
        if not is_main_process():
            return
        # The name of a file may hold bytes that are no UTF-8. Python reads
        # them as lone surrogates, and 'backslashreplace' writes these as
        # JSON's own escapes.
        line = to_json(row).encode('utf-8', 'backslashreplace') + b'\n'
        try:
            # Opened anew for each row, so that nothing waits in a buffer when
            # the process is killed.
            with open(self.path, 'a+b') as file:
                file.write(line_end(file) + line)
        except OSError as error:
            runner.logger.error(
                f'mmnanguard: cannot write {self.path} ({error}); training '
                'goes on, this row is lost'
            )


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
    same checkpoint.

    Args:
        work_dir: The folder of all attempts.
        run: The id of the run.
    """
    last = 0
    for path in events_files(work_dir):
        for line in path.read_bytes().split(b'\n'):
            # Cheaper than to parse each line: a file may have many events.
            if b'"start"' not in line:
                continue
            try:
                row = record_of(json.loads(line))
            except ValueError:
                # A killed process has written half a line.
                continue
            if isinstance(row, StartRow) and row.run == run:
                last = max(last, row.attempt)
    return last
