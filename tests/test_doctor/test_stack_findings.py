"""The doctor's look at versions: nothing is imported, and each has a cure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmnanguard.doctor import versions

ROOT = Path(__file__).parents[2]
FITS = {
    'torch': '2.13.0+cpu',
    'mmengine': '0.10.7',
    'numpy': '2.4.6',
    'setuptools': '80.10.2',
}


@pytest.fixture
def look(monkeypatch):
    """Return the findings but the first on a stack with changes."""

    def look_with(missing=(), **changes):
        installed = {**FITS, **changes}
        monkeypatch.setattr(
            versions, 'version', lambda name: installed.get(name, '')
        )
        monkeypatch.setattr(versions, 'rival_warnings', lambda: [])
        find_spec = versions.find_spec
        monkeypatch.setattr(
            versions,
            'find_spec',
            lambda name: None if name in missing else find_spec(name),
        )
        monkeypatch.setattr('platform.python_version', lambda: '3.11.7')
        first, *findings = versions.look_at_versions()
        assert first.level == 'OK'
        return findings

    return look_with


def test_a_stack_that_fits(look):
    assert look() == []


@pytest.mark.parametrize(
    ('changes', 'level', 'text', 'command'),
    [
        (
            dict(torch='2.0.1', numpy='1.26.4'),
            'FAIL',
            'torch is 2.0.1',
            "'torch>=2.1'",
        ),
        (dict(mmengine='0.8.4'), 'FAIL', 'is 0.8.4', "'mmengine>=0.10,<1.0'"),
        (dict(torch='2.99.0'), 'WARN', 'newer than any tried (2.14)', ''),
        (
            dict(torch='2.1.2'),
            'FAIL',
            'built for NumPy 1 and cannot use numpy 2.4.6',
            "'numpy<2'",
        ),
        (dict(mmcv='1.7.1'), 'WARN', 'mmcv 1.7.1', "'mmcv>=2.0.0'"),
    ],
)
def test_a_version_that_does_not_fit(look, changes, level, text, command):
    (finding,) = look(**changes)
    assert finding.level == level
    assert text in finding.text
    assert command in finding.command


def test_a_package_that_is_missing(look):
    (finding,) = look(missing=['torch'])
    assert finding.command == "pip install 'torch>=2.1'"


@pytest.mark.skipif(
    versions.version('onedl-mmengine') != '', reason='the fork needs none'
)
def test_setuptools_without_pkg_resources(look):
    (finding,) = look(missing=['pkg_resources'], setuptools='82.0.0')
    assert 'setuptools 82.0.0 has no pkg_resources' in finding.text
    assert finding.command == "pip install 'setuptools<81'"


def test_the_newest_versions_are_those_of_the_table():
    table = (ROOT / 'docs' / 'en' / 'stacks.md').read_text()
    rows = re.findall(r'^\| (3\.\d+)\S* \| (\d+\.\d+)\S* \|', table, re.M)
    for column, name in enumerate(('Python', 'torch')):
        pairs = {tuple(map(int, row[column].split('.'))) for row in rows}
        assert versions.NEWEST_TRIED[name] == max(pairs)


def test_a_stack_that_cannot_be_imported(tmp_path):
    """The command of its own process says the cure, and no traceback."""
    texts = {
        'torch': "__version__ = '2.14.1'",
        'mmengine': 'import pkg_resources',
        'mmengine/utils': '',
    }
    for name, text in texts.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / '__init__.py').write_text(text)
    needs = tmp_path / 'mmengine' / 'utils' / 'package_utils.py'
    needs.write_text('from pkg_resources import get_distribution')
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'mmnanguard', 'doctor', 'config.py'],
        env=dict(os.environ, PYTHONPATH=path),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ''
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "pip install 'setuptools<81'"
