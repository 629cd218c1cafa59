"""The records of rows of any kind, including kinds of other versions."""

from dataclasses import dataclass, field
from typing import ClassVar, Dict, Type

from .alert_row import AlertRow
from .audit_row import AuditRow
from .autopsy import Autopsy
from .bypass_row import BypassRow
from .dump_row import DumpRow
from .end_row import EndRow
from .guard_event import GuardEvent
from .halt_row import HaltRow
from .input_row import InputRow
from .json_numbers import to_json
from .remedy_row import RemedyRow
from .rollback_row import RollbackRow
from .row_record import NewRow, Row, RowRecord
from .start_row import StartRow

__all__ = ['RECORDS', 'OtherRow', 'record_of', 'sentence_of']


@dataclass(frozen=True)
class OtherRow(RowRecord):
    """A row of an unknown kind, or a row that lacks a key that it needs.

    Attributes:
        id: The id of the row; '' if it has none.
        row: The whole row.
    """

    KIND: ClassVar[str] = ''

    id: str = ''
    row: Row = field(default_factory=dict)

    def to_row(self) -> NewRow:
        return dict(self.row)

    def sentence(self) -> str:
        # The line that shows the sentence has these keys already.
        row = dict(self.row)
        for key in ('schema', 'kind', 'id', 'run', 'attempt', 'iter'):
            row.pop(key, None)
        return to_json(row)


# In the order in which docs/en/events.md describes the kinds.
KNOWN = (
    StartRow,
    GuardEvent,
    Autopsy,
    DumpRow,
    RemedyRow,
    InputRow,
    RollbackRow,
    AuditRow,
    AlertRow,
    BypassRow,
    HaltRow,
    EndRow,
)
RECORDS: Dict[str, Type[RowRecord]] = {record.KIND: record for record in KNOWN}


def record_of(row: Row) -> RowRecord:
    """Return the record of any row. No content of a row raises an error."""
    # str: a row of a file may have any JSON value here, even without a hash.
    record = RECORDS.get(str(row.get('kind')))
    if record is not None:
        try:
            return record.from_row(row)
        except ValueError:  # a needed key is missing or of another type
            pass
    return OtherRow(str(row.get('id', '')), row)


def sentence_of(row: Row) -> str:
    """Describe any row in a sentence. No content of a row raises an error."""
    try:
        return record_of(row).sentence()
    # Nested dicts of another version may lack keys or have other types, an
    # integer may be too large for a float, a list has no keys, and so on.
    except Exception:
        return OtherRow('', row).sentence()
