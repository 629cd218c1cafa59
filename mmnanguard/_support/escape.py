"""Text that is safe to show in a terminal, and words that are safe to paste.

Names of samples, modules and files come from data, and the data may come from
strangers. A name may hold escape sequences that control a terminal, line ends
that forge a line of the log, or marks that reverse the direction of text.
"""

import shlex
import unicodedata

__all__ = ['escape', 'escape_lines', 'shell_word']

# The zero-width joiners: Persian, Hindi and many emoji cannot be written
# without them, and they control nothing.
JOINERS = '\u200c\u200d'


def escape(text: object) -> str:
    r"""Return a text as one line that can be shown.

    Control characters, line ends, marks of direction, lone surrogates and
    unassigned characters become Python's escapes such as ``\x1b``. Letters
    of all scripts, spaces and emoji stay as they are.
    """
    shown = str(text)
    # Nearly all texts need no escapes, and this check is fast.
    if shown.isprintable():
        return shown
    return ''.join(map(escape_character, shown))


def escape_lines(text: object) -> str:
    """Return a text of several lines that can be shown; see :func:`escape`."""
    return '\n'.join(map(escape, str(text).split('\n')))


def escape_character(character: str) -> str:
    """Return a character, or its escape if it cannot be shown."""
    if character.isprintable() or character in JOINERS:
        return character
    # Spaces of other scripts, which Python calls unprintable.
    if unicodedata.category(character) == 'Zs':
        return character
    return ascii(character)[1:-1]


def bytes_of(character: str) -> bytes:
    """Return the bytes of a character in a file's name."""
    try:
        return character.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:
        # A row may hold a lone surrogate that stands for no byte.
        return character.encode('utf-8', 'surrogatepass')


def shell_word(text: object) -> str:
    """Return a text as one word of a POSIX shell, to be pasted.

    A text with characters that cannot be shown becomes ``$'...'`` with
    escapes, which bash, zsh, ksh and busybox read. Bytes of a file's name
    that are no UTF-8 stay what they are.
    """
    word = str(text)
    if escape(word) == word:
        return shlex.quote(word)
    quoted = []
    for character in word:
        if character in "'\\":
            quoted.append(f'\\{character}')
        elif escape_character(character) == character:
            quoted.append(character)
        else:
            for byte in bytes_of(character):
                # Three octal digits: a digit after '\x1b' would be read as
                # a part of the escape.
                quoted.append(f'\\{byte:03o}')
    return f"$'{''.join(quoted)}'"
