"""The rule that no error of a measurement reaches the training."""

from contextlib import suppress
from typing import Any, Callable

__all__ = ['Failsafe']

MAX_TEXT = 200  # characters of an error's text


class Failsafe:
    """Runs the parts of a measurement until one of them fails.

    Attributes:
        failure: The first error, with its type and the module; '' if there is
            none. The error itself would keep the tensors of its frames.
    """

    def __init__(self) -> None:
        self.failure = ''

    def run(
        self,
        where: Callable[[], str],
        function: Callable[..., object],
        *args: Any,
    ) -> None:
        """Run a function unless one has failed; raises no Exception.

        Args:
            where: Returns the name of the module; called after an error.
            function: The function.
            args: Its arguments.
        """
        if self.failure:
            return
        try:
            function(*args)
        except Exception as error:
            name = ''
            with suppress(Exception):
                name = where()
            self.note(error, name)

    def note(self, error: Exception, module: str = '') -> None:
        """Note an error, unless there was one before.

        Args:
            error: The error.
            module: The name of the module; '' if it is not known.
        """
        text = type(error).__name__
        if module:
            text += f" in '{module}'"
        # The text of an error is made by code that may fail as well.
        with suppress(Exception):
            text += f': {error}'.partition('\n')[0][:MAX_TEXT]
        self.failure = self.failure or text
