"""Text to show and words to paste hold nothing that steers a terminal."""

import json
import os
import subprocess
import unicodedata
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard._support.escape import escape, escape_lines, shell_word
from mmnanguard.core.rows.json_numbers import to_json

HARMFUL = {
    'escape': ('\x1b]0;owned\x07a.jpg', '\\x1b]0;owned\\x07a.jpg'),
    'line end': ('a\r\nIter 2: all is well', 'a\\r\\nIter 2: all is well'),
    'C1': ('a\x9b2J', 'a\\x9b2J'),
    'bidi': ('a\u202egpj.exe', 'a\\u202egpj.exe'),
    'isolate': ('a\u2066b', 'a\\u2066b'),
    'separator': ('a\u2028b', 'a\\u2028b'),
    'no UTF-8': (os.fsdecode(b'a\xff'), 'a\\udcff'),
    'tag': ('a\U000e0041', 'a\\U000e0041'),
}
READABLE = [
    'a b.jpg',
    '猫　犬.jpg',
    'naïve\xa0é',
    '👩\u200d🚀',
    "it's",
    'a\\b',
]


@pytest.mark.parametrize(('text', 'shown'), HARMFUL.values(), ids=HARMFUL)
def test_harmful_characters_become_escapes(text, shown):
    assert escape(text) == shown
    assert escape_lines(text).isprintable() == ('\n' not in text)


@pytest.mark.parametrize('text', READABLE)
def test_readable_text_stays(text):
    assert escape(text) == text


def test_lines_stay_lines():
    assert escape_lines('a\x1b\n  b') == 'a\\x1b\n  b'


@given(st.text())
def test_json_shows_no_control_and_keeps_the_text(text):
    line = to_json({'name': text})
    assert escape(line) == line
    assert json.loads(line) == {'name': text}


SHELL = ['', '$(touch owned)', '`a`', '; b #', '"', "\x1b'\\7", '\n', '~', '*']


@pytest.mark.parametrize(
    'text', [*map(itemgetter(0), HARMFUL.values()), *READABLE, *SHELL]
)
def test_bash_reads_a_word_as_the_text(text):
    word = shell_word(text)
    assert escape(word) == word
    done = subprocess.run(
        ['bash', '-c', f'printf %s {word}'], capture_output=True, check=True
    )
    assert done.stdout == os.fsencode(text)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters='\0'))))
def test_bash_reads_any_words(texts):
    words = ' '.join(map(shell_word, texts))
    # The surrogates of os.fsdecode() only: no file has another one.
    for text in texts:
        if any(unicodedata.category(char) == 'Cs' for char in text):
            return
    done = subprocess.run(
        ['bash', '-c', f"printf '%s\\0' start {words}"],
        capture_output=True,
        check=True,
    )
    assert done.stdout.split(b'\0')[1:-1] == list(map(os.fsencode, texts))
