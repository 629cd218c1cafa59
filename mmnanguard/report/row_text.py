"""Commands and config lines to paste, from rows."""

from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.core.rows.row_record import Row

__all__ = ['command_of']


def command_of(row: Row) -> str:
    """Return the text to paste.

    The text is the config line of a remedy, or the command that replays a
    dump; '' for other rows.
    """
    record = record_of(row)
    if isinstance(record, RemedyRow):
        return record.config
    if isinstance(record, DumpRow):
        return record.command()
    return ''
