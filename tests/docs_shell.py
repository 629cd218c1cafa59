"""The blocks of the documentation, and its commands run as a reader would."""

import argparse
import atexit
import contextlib
import glob
import io
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import List, NamedTuple
from unittest import mock

from global_state import clear_globals

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs' / 'en').glob('*.md'))]
FENCED = re.compile(
    r'(?:<!-- (?P<mark>not run|run by|given): (?P<remark>.*?) -->\n+)?'
    r'^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$',
    re.M | re.S,
)
# What MMEngine writes before a message; in errors also where it comes from.
HEAD = re.compile(
    r'^\S+ \S+ - mmengine - [A-Z]+ - (?:\S+ - \w+ - \d+ - )?', re.M
)
# The folder that commands are run in; it goes when the tests end.
FOLDER = tempfile.TemporaryDirectory(prefix='docs')
atexit.register(FOLDER.cleanup)


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    mark: str  # 'not run', 'run by' or 'given'
    remark: str  # the reason, the test that runs it, or the code before it
    section: str  # the heading above

    def __str__(self):
        return f'{self.page}:{self.line}'


@lru_cache(maxsize=None)
def blocks(path) -> List[Block]:
    text = path.read_text()
    result = []
    for match in FENCED.finditer(text):
        before = text[: match.start('language')]
        indent = match['indent']
        result.append(
            Block(
                path.relative_to(ROOT).as_posix(),
                before.count('\n') + 1,
                match['language'],
                re.sub(f'^{indent}', '', match['text'], flags=re.M),
                match['mark'] or '',
                match['remark'] or '',
                ('', *re.findall(r'^#+ (.*)', before, re.M))[-1],
            )
        )
    return result


def all_blocks(*languages) -> List[Block]:
    every_block = itertools.chain.from_iterable(map(blocks, PAGES))
    return [block for block in every_block if block.language in languages]


def commands(text) -> List[str]:
    """Return the commands of a shell block; some span several lines."""
    complete, open_lines = [], ''
    for line in text.splitlines():
        open_lines += line + '\n'
        if line.endswith('\\'):
            continue
        with contextlib.suppress(ValueError):  # a quote that is still open
            if shlex.split(open_lines, comments=True):
                complete.append(open_lines.strip())
            open_lines = ''
    assert not open_lines, f'no end: {open_lines}'
    return complete


def words_of(command) -> List[str]:
    words = shlex.split(command.replace('\\\n', ' '), comments=True)
    while words and re.match(r'[A-Z_]+=', words[0]):
        words.pop(0)
    if words[0] == '.venv/bin/python':  # the one that runs the tests
        words[0] = 'python'
    return words


@lru_cache(maxsize=None)
def run(command) -> str:
    """Return the output of a command, without the prefixes of log lines.

    Scripts run in this process, for speed. Each command runs only once.
    """
    folder = Path(FOLDER.name)
    for name in ('benchmarks', 'configs', 'tools', 'mmnanguard'):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    words = words_of(command)
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)
        if words[0] != 'python':
            done = subprocess.run(
                ['bash', '-c', command], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return done.stdout
        args = []
        for word in words[1:]:
            args += glob.glob(word) or [word]
        stack.callback(clear_globals)
        clear_globals()
        out = io.StringIO()
        paths = [
            str(ROOT / 'tools'),
            str(ROOT / 'benchmarks'),
            str(ROOT),
            *sys.path,
        ]
        stack.enter_context(mock.patch.object(sys, 'path', paths))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(out))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')
        if args[0] == '-c':
            exec(args[1], {})
        else:
            stack.enter_context(mock.patch.object(sys, 'argv', args))
            with contextlib.suppress(SystemExit):
                runpy.run_path(args[0], run_name='__main__')
        return HEAD.sub('', out.getvalue())


@lru_cache(maxsize=None)
def parser_of(script) -> argparse.ArgumentParser:
    """Return the parser that a script builds; the script runs no further."""
    parsers = []

    def stop(parser, *args, **kwargs):
        parsers.append(parser)
        raise SystemExit

    paths = [
        str(ROOT / 'tools'),
        str(ROOT / 'benchmarks'),
        str(ROOT),
        *sys.path,
    ]
    with mock.patch.object(
        argparse.ArgumentParser, 'parse_args', stop
    ), mock.patch.object(sys, 'path', paths), mock.patch.object(
        sys, 'argv', [script]
    ), contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / script), run_name='__main__')
    return parsers[0]
