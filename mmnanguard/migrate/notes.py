from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

__all__ = ['Notes']


@dataclass
class Notes:
    """What a migration did, and what it did not.

    Attributes:
        done: What became of a key.
        changed: What the new key does in another way.
        left: What it cannot do.
    """

    done: List[Tuple[Optional[int], str]] = field(default_factory=list)
    changed: List[Tuple[Optional[int], str]] = field(default_factory=list)
    left: List[Tuple[Optional[int], str]] = field(default_factory=list)

    def sections(self) -> Dict[str, List[str]]:
        """Lines under a heading each, in the order of the file."""
        titles = {
            'done': self.done,
            'changed in meaning': self.changed,
            'cannot do, left to you': self.left,
        }
        return {
            title: [
                text if line is None else f'line {line}: {text}'
                for line, text in sorted(
                    notes, key=lambda note: note[0] or 1 << 30
                )
            ]
            for title, notes in titles.items()
        }
