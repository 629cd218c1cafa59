"""The look at the installed versions, before any of them is imported.

A version that does not fit can make the import of MMEngine or of a project
fail, so this module reads what pip has recorded and imports nothing.
"""

import platform
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from mmnanguard.check_stack import (
    RANGES,
    RIVALS,
    allowed_range,
    is_in_range,
    rival_warnings,
    version,
)

from .finding import Finding, fail, fine, warn

__all__ = [
    'CURE',
    'PKG_RESOURCES',
    'explain_stack',
    'look_at_versions',
    'pkg_resources_cure',
]

# The newest versions in the table of docs/en/stacks.md.
NEWEST_TRIED = {'torch': (2, 14), 'Python': (3, 13)}
# The first versions in which pip packages of the time work together.
NUMPY_2 = (2, 0)
TORCH_FOR_NUMPY_2 = (2, 3)
OLD_MMCV = (2, 0)
PKG_RESOURCES = 'pkg_resources'
CURE = "pip install 'setuptools<81'"

Pair = Optional[Tuple[int, int]]


def look_at_versions() -> List[Finding]:
    """Return the findings on Python and the installed packages."""
    python = platform.python_version()
    known = [f'Python {python}']
    findings: List[Finding] = []
    for package in ('torch', 'mmengine', 'mmcv', 'numpy', 'setuptools'):
        for name in RIVALS.get(package, (package,)):
            if version(name):
                known.append(f'{name} {version(name)}')
    for package in RANGES:
        findings += look_at_needed(package)
    for text in rival_warnings():
        findings.append(warn(text))
    findings += look_at_numpy()
    findings += look_at_mmcv()
    findings += look_at_pkg_resources()
    if is_newer('Python', python):
        findings.append(warn(f'Python {python} is newer than any tried.'))
    return [fine(', '.join(known)), *findings]


def look_at_needed(package: str) -> Iterator[Finding]:
    """Yield a finding if a needed package is missing or out of range."""
    if find_spec(package) is None:
        yield fail(
            f'{package} is not installed.',
            f'Install {package}{allowed_range(package)}:',
            f"pip install '{package}{allowed_range(package)}'",
        )
        return
    given = first_version(package)
    # A package from elsewhere has no record; its import will say more.
    if not given:
        return
    if not is_in_range(package, given):
        yield fail(
            f'{package} is {given}: mmnanguard needs '
            f'{package}{allowed_range(package)}.',
            'Install one that fits:',
            f"pip install '{package}{allowed_range(package)}'",
        )
    elif is_newer(package, given):
        newest = '.'.join(map(str, NEWEST_TRIED[package]))
        yield warn(
            f'{package} {given} is newer than any tried ({newest}); what '
            'was tried is in docs/en/stacks.md.'
        )


def look_at_numpy() -> Iterator[Finding]:
    """Yield a finding if PyTorch was built for an older NumPy."""
    torch, numpy = pair_of(version('torch')), pair_of(version('numpy'))
    if torch is None or numpy is None:
        return
    if torch < TORCH_FOR_NUMPY_2 and numpy >= NUMPY_2:
        yield fail(
            f'torch {version("torch")} was built for NumPy 1 and cannot use '
            f'numpy {version("numpy")}.',
            'Install NumPy 1:',
            "pip install 'numpy<2'",
        )


def look_at_mmcv() -> Iterator[Finding]:
    """Yield a finding if mmcv is of the time before MMEngine."""
    given = first_version('mmcv')
    pair = pair_of(given)
    if pair is not None and pair < OLD_MMCV:
        yield warn(
            f'mmcv {given} has a runner of its own; projects for MMEngine '
            'need mmcv 2.0 or later.',
            'If your project needs mmcv:',
            "pip uninstall mmcv mmcv-full; mim install 'mmcv>=2.0.0'",
        )


def look_at_pkg_resources() -> Iterator[Finding]:
    """Yield a finding if MMEngine needs pkg_resources and it is missing."""
    if needs_pkg_resources():
        yield warn(f'{pkg_resources_cure()}:', '', CURE)


def explain_stack(error: Exception) -> Finding:
    """Return the finding on an import of torch or MMEngine that fails."""
    if getattr(error, 'name', None) == PKG_RESOURCES:
        return fail(f'{pkg_resources_cure()}.', 'Run:', CURE)
    text = f'{type(error).__name__}: {error}'.splitlines()[0]
    return fail(
        f'torch or MMEngine cannot be imported: {text}',
        'Install again what the message names (docs/en/stacks.md).',
    )


def needs_pkg_resources() -> bool:
    """Whether MMEngine imports pkg_resources and there is none."""
    if find_spec(PKG_RESOURCES) is not None:
        return False
    spec = find_spec('mmengine')
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, 'utils', 'package_utils.py')
        if file.is_file() and PKG_RESOURCES in file.read_text('utf-8'):
            return True
    return False


def pkg_resources_cure() -> str:
    """Return what MMEngine cannot do without pkg_resources."""
    present = 'setuptools is not installed'
    if version('setuptools'):
        present = f'setuptools {version("setuptools")} has no pkg_resources'
    return (
        f'{present}, with which mmengine {first_version("mmengine")} finds '
        'configs by name (mmdet::...) and installed projects'
    )


def first_version(package: str) -> str:
    """Return the version of a package's distribution; '' if unknown."""
    for name in RIVALS.get(package, (package,)):
        if version(name):
            return version(name)
    return ''


def is_newer(name: str, given: str) -> bool:
    """Whether a version is newer than any that was tried."""
    pair, newest = pair_of(given), NEWEST_TRIED.get(name)
    return pair is not None and newest is not None and pair > newest


def pair_of(given: str) -> Pair:
    """Return the first two numbers of a version, or None."""
    match = re.match(r'(\d+)\.(\d+)', given)
    if not match:
        return None
    return int(match[1]), int(match[2])
