"""The notes that a migration leaves for the user."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

__all__ = ['Notes']

Note = Tuple[Optional[int], str]
# Notes without a line come after all others.
LAST = 1 << 30


@dataclass
class Notes:
    """Notes on a migration, each with its line in the file or None.

    Attributes:
        done: Keys that were migrated.
        changed: Keys whose new form behaves differently.
        left: Keys that the user has to migrate.
    """

    done: List[Note] = field(default_factory=list)
    changed: List[Note] = field(default_factory=list)
    left: List[Note] = field(default_factory=list)

    def sections(self) -> Dict[str, List[str]]:
        """Return the printed lines by heading, in the order of the file."""
        return {
            'done': format_notes(self.done),
            'changed in meaning': format_notes(self.changed),
            'cannot do, left to you': format_notes(self.left),
        }


def format_notes(notes: List[Note]) -> List[str]:
    """Return a printed line for each note, in the order of the file."""
    lines = []
    # The key is the line alone: sorted() is stable, so the notes on a line
    # stay in the order of the steps.
    for line, text in sorted(notes, key=lambda note: note[0] or LAST):
        if line is not None:
            text = f'line {line}: {text}'
        lines.append(text)
    return lines
