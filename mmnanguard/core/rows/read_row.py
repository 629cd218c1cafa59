"""Every row as a record: the table of kinds, and rows of unknown kinds."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Type

from .audit_row import AuditRow
from .autopsy import Autopsy
from .dump_row import DumpRow
from .guard_event import GuardEvent
from .halt_row import HaltRow
from .input_row import InputRow
from .json_numbers import to_json
from .remedy_row import RemedyRow
from .rollback_row import RollbackRow
from .row_record import Row, RowRecord
from .start_row import StartRow

__all__ = ['RECORDS', 'OtherRow', 'record_of', 'sentence_of']


@dataclass(frozen=True)
class OtherRow(RowRecord):
    """A row of another version, or one that lacks what its kind needs.

    Attributes:
        row: All of it.
    """

    KIND: ClassVar[str] = ''

    id: str = ''
    row: Row = field(default_factory=dict)

    def to_row(self) -> Dict[str, Any]:
        return dict(self.row)

    def sentence(self) -> str:
        hidden = ('schema', 'kind', 'id', 'run', 'attempt', 'iter')
        row = self.row
        return to_json({key: row[key] for key in row if key not in hidden})


RECORDS: Dict[str, Type[RowRecord]] = {
    record.KIND: record
    for record in (
        StartRow,
        GuardEvent,
        Autopsy,
        DumpRow,
        RemedyRow,
        InputRow,
        RollbackRow,
        AuditRow,
        HaltRow,
    )
}


def record_of(row: Row) -> RowRecord:
    """Return the record of any row; never raises for what a row holds."""
    record = RECORDS.get(str(row.get('kind')))
    if record is not None:
        try:
            return record.from_row(row)
        except ValueError:
            pass
    return OtherRow(str(row.get('id', '')), row)


def sentence_of(row: Row) -> str:
    """Return what a row says; never raises for what a row holds."""
    try:
        return record_of(row).sentence()
    # Parts of another version, and integers that no float can hold.
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return OtherRow('', row).sentence()
