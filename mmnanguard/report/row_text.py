"""Sentences on rows, and commands and config lines to paste."""

from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.read_row import record_of, sentence_of
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.core.rows.row_record import Row

__all__ = ['command_of', 'text_of']


def text_of(row: Row) -> str:
    """Return the sentence on a kept row, with what came of an alert."""
    text = sentence_of(row)
    if row.get('kind') == AlertRow.KIND and row.get('outcome'):
        # The end of the sentence may be a config line to paste.
        return f'{row["outcome"]}: {text}'
    return text


def command_of(row: Row) -> str:
    """Return the text to paste.

    The text is the config line of a remedy or an alert, or the command that
    replays a dump; '' for other rows.
    """
    record = record_of(row)
    if isinstance(record, AlertRow) and record.cleared is not None:
        return ''
    if isinstance(record, (AlertRow, RemedyRow)):
        return record.config
    if isinstance(record, DumpRow):
        return record.command()
    return ''
