"""The hook that shows rows as text in dashboards."""

import json
import logging
import textwrap
from typing import Dict

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from mmnanguard._console import say
from mmnanguard.core import GuardEvent
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.registry import HOOKS

from .._shared.guard_listener import GuardListener
from .._shared.hook_arguments import Row
from .event_text import Writer, text_writer

__all__ = ['EventTextHook']


@HOOKS.register_module()
class EventTextHook(GuardListener):
    """Shows events as text, next to the scalars, in TensorBoard and others.

    Each event and each row of another hook goes to the backends of the
    config's visualizer, under ``guard/<kind of row>`` at the iteration of the
    event. The text is the console line and the row. Backends: TensorBoard,
    Weights & Biases, MLflow, ClearML, Neptune, Aim, and any that has a method
    ``add_text(tag, text, step)``; the log names other backends once.
    ``LocalVisBackend`` needs no text, since ``EventLogHook`` writes its file.

    Needs ``NanGuardHook``, which hands out the events. Writes on rank 0 only.
    A backend that fails gets no more text, and training goes on.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Find the backends that take text, and name the others."""
        self._writers: Dict[str, Writer] = {}
        # The step of a row without an iteration: that of the last event.
        self._step = runner.iter + 1
        for name, backend in runner.visualizer._vis_backends.items():
            write = text_writer(backend)
            if write is not None:
                self._writers[name] = write
            elif not isinstance(backend, LocalVisBackend):
                say(
                    f'mmnanguard: {name} shows no text, so no events; they '
                    "are in EventLogHook's events.jsonl",
                    logging.INFO,
                    runner.logger,
                )

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Show an event."""
        self._step = event.iter
        self._write(runner, event.to_row(), event.line())

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Show the row of another hook, mostly about the last event."""
        self._write(runner, row, f'Iter {row.get("iter", self._step)}')

    def _write(self, runner: Runner, row: Row, headline: str) -> None:
        """Write headline and row to all backends that take text."""
        if not is_main_process():
            return
        # to_json() writes NaN and inf as strings, since JSON has no such
        # numbers, and json.dumps() writes one key per line.
        code = json.dumps(json.loads(to_json(row)), indent=1)
        # Dashboards render Markdown, which leaves code as it is if a blank
        # line is before it and four spaces begin each line.
        text = f'{headline}\n\n' + textwrap.indent(code, ' ' * 4)
        # A copy, because a backend that fails is removed.
        for name, write in list(self._writers.items()):
            try:
                write(
                    f'guard/{row["kind"]}', text, row.get('iter', self._step)
                )
            except Exception as error:
                # Each backend raises errors of its own, and no text is worth
                # a run.
                del self._writers[name]
                say(
                    f'mmnanguard: {name} takes no text '
                    f'({type(error).__name__}: {error}); events go on to '
                    "EventLogHook's events.jsonl, and training goes on",
                    logging.ERROR,
                    runner.logger,
                )
