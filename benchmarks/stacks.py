"""Run tests on installed stacks and write what happened into the docs.

A stack is an environment: a Python with its torch, numpy, MMEngine and
setuptools. Each given interpreter runs a part of the tests; its row in the
table of docs/en/stacks.md and docs/zh_cn/stacks.md is added, or replaces the
row of the same stack. Nothing else writes that table.

Example:
    python benchmarks/stacks.py .venv/bin/python .venv-floor/bin/python
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'docs' / name / 'stacks.md' for name in ('en', 'zh_cn')]
MARK = '<!-- written by: benchmarks/stacks.py -->'
PARTS = {
    # Everything that depends on versions at least once, in a few minutes.
    'short': (
        'tests/test_core',
        'tests/test_safe_load.py',
        'tests/test_numerics/test_scan.py',
        'tests/test_numerics/test_snapshot.py',
        'tests/test_optim/test_each_cause.py',
        'tests/test_optim/test_wrappers.py',
        'tests/test_runs/test_stories.py',
        'tests/test_runs/test_written_by_0_1.py',
    ),
    'all': ('tests',),
}
# Printed by the interpreter of a stack, which may be older than this one.
DESCRIBE = """
import importlib, json, platform
from importlib.metadata import PackageNotFoundError, version
names = ['torch', 'numpy', 'mmengine', 'onedl-mmengine', 'setuptools']
found = {'python': platform.python_version()}
for name in names:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
try:
    importlib.import_module('pkg_resources')
except ImportError:
    found['setuptools'] += ' without pkg_resources'
print(json.dumps(found))
"""
COUNT = re.compile(r'(\d+) (passed|failed|skipped|error)')


def describe(python):
    """Return the versions of a stack, by distribution."""
    done = subprocess.run(
        [python, '-W', 'ignore', '-c', DESCRIBE],
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def run_tests(python, part, timeout):
    """Return how many tests of a part passed, failed and were skipped."""
    folders = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    done = subprocess.run(
        [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *PARTS[part]],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': folders, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    lines = done.stdout.splitlines()
    counts = dict(passed=0, failed=0, skipped=0, error=0)
    for count, name in COUNT.findall(lines[-1] if lines else ''):
        counts[name] = int(count)
    if counts['failed'] or counts['error'] or not counts['passed']:
        print(done.stdout[-5000:], done.stderr[-2000:], file=sys.stderr)
        # Tests that could not be collected have failed, too.
        counts['failed'] += max(counts['error'], not counts['passed'])
    return counts


def make_row(versions, part, counts, date):
    """Return the cells of a stack; the first four name it."""
    engine = versions.get('mmengine', '-')
    if 'onedl-mmengine' in versions:
        engine = f'onedl-mmengine {versions["onedl-mmengine"]}'
    return [
        versions['python'],
        versions['torch'],
        versions['numpy'],
        engine,
        versions.get('setuptools', '-'),
        part,
        *map(str, (counts['passed'], counts['failed'], counts['skipped'])),
        date,
    ]


def read_rows(text):
    """Return the lines before the rows, the rows, and the lines after."""
    lines = text.split('\n')
    start = lines.index(MARK) + 4  # a blank line, the head and its rule
    end = lines.index('', start)
    rows = []
    for line in lines[start:end]:
        rows.append([cell.strip() for cell in line.strip('|').split('|')])
    return lines[:start], rows, lines[end:]


def put_row(page, row):
    """Write a row into a page; it replaces the row of the same stack."""
    before, rows, after = read_rows(page.read_text(encoding='utf-8'))
    rows = [other for other in rows if other[:4] != row[:4]]
    rows = sorted([*rows, row], key=sort_key)
    lines = [f'| {" | ".join(cells)} |' for cells in rows]
    text = '\n'.join([*before, *lines, *after])
    page.write_text(text, encoding='utf-8')


def sort_key(row):
    """Return the numbers of the versions of a row."""
    return [list(map(int, re.findall(r'\d+', cell))) for cell in row[:4]]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('pythons', nargs='+', metavar='PYTHON', help='of an environment')
    add('--part', choices=PARTS, default='short')
    add('--timeout', type=float, default=3600.0, help='seconds for a stack')
    args = parser.parse_args(argv)
    num_failed = 0
    for python in args.pythons:
        versions = describe(python)
        counts = run_tests(python, args.part, args.timeout)
        row = make_row(versions, args.part, counts, time.strftime('%Y-%m-%d'))
        print(*row, sep=' | ')
        for page in PAGES:
            put_row(page, row)
        num_failed += counts['failed']
    return 1 if num_failed else 0


if __name__ == '__main__':
    sys.exit(main())
