"""The command line of every tool: its name, its options, its exit status.

An exit status says the same of all tools, see docs/en/tools.md.
"""

import argparse
import sys
import traceback
from typing import Callable, Optional

from ._support.escape import escape_lines
from .core import NanGuardError
from .version import __version__

__all__ = [
    'CRASHED',
    'FINE',
    'FOUND',
    'HALTED',
    'WRONG_USE',
    'ToolParser',
    'complain',
    'run_tool',
]

FINE = 0
FOUND = 1  # something that needs a look
WRONG_USE = 2  # of the command line, or a file that cannot be read
HALTED = 3  # a training, by the guard
CRASHED = 70  # the tool, with a traceback (EX_SOFTWARE of sysexits.h)


class ToolParser(argparse.ArgumentParser):
    """A parser that calls its tool by the command that was typed.

    Args:
        text: The docstring of the tool, whose example begins with
            ``python tools/<name>.py``.

    Attributes:
        command: 'python -m mmnanguard <name>', if the tool was started so;
            '' for a script.
    """

    command = ''

    @classmethod
    def name_module(cls, name: str) -> None:
        """Note that a tool was started by ``python -m mmnanguard``."""
        cls.command = f'python -m mmnanguard {name}'

    def __init__(self, text: Optional[str]) -> None:
        if self.command and text:
            name = self.command.split()[-1]
            text = text.replace(f'python tools/{name}.py', self.command)
        super().__init__(
            prog=typed_command(),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        version = f'mmnanguard {__version__}'
        self.add_argument('--version', action='version', version=version)


def typed_command() -> str:
    """Return the command that started the tool, without its options."""
    return ToolParser.command or sys.argv[0]


def run_tool(
    tool: Callable[[argparse.Namespace], int], args: argparse.Namespace
) -> int:
    """Run a tool; return its exit status.

    An error about what the user gave is one line. Any other exception is a
    fault of the tool, or of code that it runs: it comes with a traceback.
    Python's own status would be 1, which has another meaning.

    Args:
        tool: A function of the arguments that returns the exit status.
        args: The arguments.
    """
    try:
        return tool(args)
    except (NanGuardError, OSError, UnicodeError) as error:
        return complain(error)
    except Exception:
        traceback.print_exc()
        print(
            f'{typed_command()}: a fault of the tool, or of code that it ran '
            'for you such as a dataset: see the traceback',
            file=sys.stderr,
        )
        return CRASHED


def complain(error: BaseException) -> int:
    """Print an error about what the user gave; return the exit status."""
    story = escape_lines(f'{type(error).__name__}: {error}')
    print(f'{typed_command()}: error: {story}', file=sys.stderr)
    return WRONG_USE
