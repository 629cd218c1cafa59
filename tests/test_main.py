"""``python -m mmnanguard`` works outside the sources."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmnanguard.__main__ import TOOLS

ROOT = Path(__file__).parents[1]


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'mmnanguard', *words],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ('words', 'status', 'message'),
    [
        ((), 2, 'where TOOL is'),
        (('--help',), 0, 'report: Report a guarded run on one page'),
        (('trane',), 2, "'trane' is no tool. Did you mean 'train'?"),
        (
            ('scan_checkpoints', '--help'),
            0,
            'usage: python -m mmnanguard scan_checkpoints ',
        ),
        (('report', 'nowhere'), 2, 'nowhere: there is no such folder'),
        (('train', 'mmnanguard::digits/plain_fp32.py', '--x'), 2, '--x'),
    ],
)
def test_a_tool_by_its_name(tmp_path, words, status, message):
    done = run(*words, cwd=tmp_path)
    assert message in done.stdout + done.stderr
    assert done.returncode == status


def test_each_tool_is_there():
    for name in TOOLS:
        assert (ROOT / 'tools' / f'{name}.py').is_file()
