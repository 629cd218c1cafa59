"""The rows of the warnings in capitals, see ``BypassRow``."""

from typing import List

from mmengine.runner import Runner

from mmnanguard._support.escape import escape
from mmnanguard.core.rows.bypass_row import BypassRow

__all__ = ['hand_out', 'note_bypass']


def note_bypass(
    rows: List[BypassRow], optimizer: str, message: str, is_guarded: bool
) -> None:
    """Keep a warning, which may come amid an update."""
    rows.append(BypassRow(None, optimizer, is_guarded, escape(message)))


def hand_out(runner: Runner, rows: List[BypassRow]) -> None:
    """Hand the rows to all hooks, and empty the list."""
    handed, rows[:] = list(rows), []
    for record in handed:
        row = record.replace(iter=runner.iter + 1).to_row()
        runner.call_hook('after_guard_row', row=row)
