"""Wheel and sdist are built, installed and used outside the sources."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmnanguard import __version__

ROOT = Path(__file__).parents[1]
# What lies about in a folder in which people work.
ASIDE = shutil.ignore_patterns(
    *('.git', '.venv*', '.*_cache', '.hypothesis', '__pycache__'),
    *('*.egg-info', 'build', 'dist', 'work_dirs'),
)
BUILD = 'import sys, setuptools.build_meta as b; b.build_{}(sys.argv[1])'


def run(*command, cwd, **environment):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, command)],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': '', **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def build(kind, source, folder):
    """Build a distribution as pip does with --no-build-isolation, offline."""
    folder.mkdir()
    run('-c', BUILD.format(kind), folder, cwd=source)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Build the wheel and the sdist of a copy of the sources, and the sdist's
    wheel.
    """
    folder = tmp_path_factory.mktemp('built')
    source = folder / 'source'
    shutil.copytree(ROOT, source, symlinks=True, ignore=ASIDE)
    sdist = build('sdist', source, folder / 'sdist')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'unpacked')
    (unpacked,) = (folder / 'unpacked').iterdir()
    shutil.rmtree(source / 'mmnanguard.egg-info')
    wheels = [
        build('wheel', tree, folder / f'wheel of {tree.parent.name}')
        for tree in (source, unpacked)
    ]
    return source, unpacked, wheels


def test_both_wheels_are_the_same(built):
    _, _, wheels = built
    contents = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            contents.append({i.filename: i.CRC for i in archive.infolist()})
    assert contents[0] == contents[1]
    shipped = {name.partition('/')[2] for name in contents[0]}
    for folder in ('configs', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            assert f'.mim/{path.relative_to(ROOT).as_posix()}' in shipped
    assert {'py.typed', '.mim/model-index.yml'} <= shipped
    assert not [name for name in contents[0] if 'test' in name.lower()]


def test_the_sdist_has_what_the_sources_have(built):
    source, unpacked, _ = built
    files = [
        {
            path.relative_to(tree)
            for path in tree.rglob('*')
            if path.is_file() and '.mim' not in path.parts
            if not {'build', 'mmnanguard.egg-info'} & set(path.parts)
        }
        for tree in (source, unpacked)
    ]
    assert files[1] - files[0] == {Path('PKG-INFO')}
    assert files[0] - files[1] == set()


def test_installing_it_writes_over_no_other_package(built, tmp_path):
    """Pip installs nothing else, so no distribution of MMEngine replaces
    another one.
    """
    said = run(
        *('-m', 'pip', 'install', '--dry-run', '--no-index'),
        *('--force-reinstall', '--disable-pip-version-check', built[2][0]),
        cwd=tmp_path,
    )
    (last,) = re.findall(r'^Would install (.*)$', said, re.M)
    assert last == f'mmnanguard-{__version__}'


def test_the_wheel_works_by_itself(built, tmp_path):
    _, _, wheels = built
    site = tmp_path / 'site'
    run(
        *('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index'),
        *('--target', site, wheels[0]),
        cwd=tmp_path,
    )
    code = (
        'import mmnanguard\n'
        'from mmengine.hub import get_config\n'
        "cfg = get_config('mmnanguard::guards/fp16.py')\n"
        'print(mmnanguard.__file__, cfg.optim_wrapper.type)\n'
    )
    said = run('-c', code, cwd=tmp_path, PYTHONPATH=str(site)).split()
    package = site / 'mmnanguard'
    assert said[-2] == str(package / '__init__.py')
    assert said[-1] == 'mmnanguard.NanGuardAmpOptimWrapper'

    run(
        *('-m', 'mmnanguard', 'train', 'mmnanguard::digits/plain_fp32.py'),
        *('--guard', 'fp32', '--work-dir', tmp_path / 'work_dir'),
        *('--cfg-options', 'train_cfg.max_epochs=1'),
        'default_hooks.drill.type=mmnanguard.FaultInjectionHook',
        'default_hooks.drill.faults.0.iter=30',
        'default_hooks.drill.faults.0.site=grad',
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    (rows,) = (tmp_path / 'work_dir').glob('*/nanguard/events.jsonl')
    assert '"iter": 30' in rows.read_text()
    assert (tmp_path / 'work_dir' / 'epoch_1.pth').is_file()
