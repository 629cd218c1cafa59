"""The findings of the doctor, and the lines that show them."""

import textwrap
from dataclasses import dataclass
from typing import Iterable, List

__all__ = ['Finding', 'fail', 'fine', 'lines_of', 'off', 'warn']

WIDTH = 80
INDENT = ' ' * 8


@dataclass(frozen=True)
class Finding:
    """A fact about a run that has not begun yet.

    Attributes:
        level: 'OK', 'WARN' for what works with less than the user may
            expect, 'FAIL' for what must be repaired first, or 'off' for a
            part of the guard that is not switched on.
        text: The fact, as one sentence or clause.
        cure: The sentence that says what to do; '' if there is nothing to do.
        command: A command, or settings in lines, to paste; never wrapped; ''
            without one.
    """

    level: str
    text: str
    cure: str = ''
    command: str = ''


def fine(text: str) -> Finding:
    """Return the finding on something that works."""
    return Finding('OK', text)


def off(text: str, command: str) -> Finding:
    """Return the finding on a part of the guard that is not switched on."""
    return Finding('off', text, '', command)


def warn(text: str, cure: str = '', command: str = '') -> Finding:
    """Return the finding on something that the user should know."""
    return Finding('WARN', text, cure, command)


def fail(text: str, cure: str = '', command: str = '') -> Finding:
    """Return the finding on something that must be repaired first."""
    return Finding('FAIL', text, cure, command)


def lines_of(title: str, findings: Iterable[Finding]) -> List[str]:
    """Return the lines of a group of findings, 80 columns wide.

    A word or a command that is longer than a line stays whole, so that it
    can be pasted.
    """
    lines = [title]
    for finding in findings:
        lines += wrap(finding.text, f'  {finding.level:<6}')
        if finding.cure:
            lines += wrap(f'-> {finding.cure}', INDENT)
        if finding.command:
            for line in finding.command.splitlines():
                lines.append(INDENT + line)
    return lines


def wrap(text: str, start: str) -> List[str]:
    """Return the lines of a text, which all begin in the same column."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
