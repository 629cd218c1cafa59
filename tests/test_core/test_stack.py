"""Reports of versions out of range and of two distributions of one package."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mmnanguard.check_stack import RIVALS, check_stack
from mmnanguard.core import GuardConfigError

ROOT = Path(__file__).parents[2]
(SAID,) = re.findall(
    r'```text\nGuardConfigError: (.*)\n```',
    (ROOT / 'docs' / 'en' / 'stacks.md').read_text(),
)


def package(name, version):
    module = ModuleType(name)
    module.__version__ = version
    return module


def check(torch='2.13.0+cpu', mmengine='0.10.7'):
    check_stack(package('torch', torch), package('mmengine', mmengine))


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Hide all distributions except those that a test installs."""
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])

    def install(name, version):
        folder = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )

    return install


@pytest.mark.parametrize('torch', ['2.1.0', '2.1.2+cu118', '2.14.0a0+git1'])
@pytest.mark.parametrize('mmengine', ['0.10.0', '0.10.12', '0.11.0rc0'])
def test_versions_in_range(torch, mmengine):
    check(torch, mmengine)


@pytest.mark.parametrize(
    ('given', 'needed'),
    [
        (dict(torch='2.0.1'), 'torch is 2.0.1: .* needs torch>=2.1'),
        (dict(torch='1.13.1+cu117'), 'torch is 1.13.1'),
        (
            dict(mmengine='0.9.1'),
            'mmengine is 0.9.1: .* needs mmengine>=0.10,<1.0',
        ),
        (dict(mmengine='1.0.0rc0'), 'mmengine is 1.0.0rc0'),
    ],
)
def test_versions_out_of_range(given, needed):
    with pytest.raises(GuardConfigError, match=needed):
        check(**given)


@pytest.mark.parametrize('name', sum(RIVALS.values(), ()))
def test_one_distribution_is_fine(installed, name):
    installed(name, '0.10.12')
    check()


def test_two_distributions_are_told(installed):
    installed('mmengine', '0.10.7')
    installed('onedl-mmengine', '0.10.12')
    installed('mmcv-lite', '2.1.0')
    with pytest.warns(UserWarning, match='are the package mmengine') as warned:
        check()
    text = str(warned[0].message)
    assert text.startswith('mmengine 0.10.7 and onedl-mmengine 0.10.12 ')
    assert 'pip uninstall mmengine mmengine-lite onedl-mmengine' in text
    assert len(warned) == 1


def run(code, *path):
    """Run code where only ``path`` and Python's own modules are found."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))
    return subprocess.run(
        [sys.executable, '-S', '-c', code],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ("__version__ = '0.8.4'", SAID),
        (None, 'has no version: files are missing'),
    ],
)
def test_an_import_says_it_first(tmp_path, lines, message):
    """The message comes from versions alone: the packages hold nothing else.

    An uninstalled package may leave a bare folder.
    """
    texts = dict(torch="__version__ = '2.3.0'", mmengine=lines)
    for name, text in texts.items():
        folder = tmp_path / name / 'utils'
        folder.mkdir(parents=True)
        if text:
            (tmp_path / name / '__init__.py').write_text(text)
    done = run('import mmnanguard', str(ROOT), str(tmp_path))
    assert done.returncode == 1
    assert 'GuardConfigError: mmengine' in done.stderr
    assert message in done.stderr
