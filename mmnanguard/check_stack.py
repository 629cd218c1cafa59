"""The check of the installed versions, at the package's import."""

import re
import warnings
from importlib import metadata
from types import ModuleType
from typing import Iterator

from mmnanguard.core.errors import GuardConfigError

__all__ = ['check_stack']

# The least version, and the first that is too new (None: no limit).
RANGES = {'torch': ((2, 1), None), 'mmengine': ((0, 10), (1, 0))}
# Distributions that install their files into the same folder.
RIVALS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv'),
}


def check_stack(torch: ModuleType, mmengine: ModuleType) -> None:
    """Refuse versions that the guard does not work with.

    Warns if two distributions of the same package are installed: nobody
    knows which of them a file is from.

    Args:
        torch: The imported package.
        mmengine: The imported package.

    Raises:
        GuardConfigError: If a version is out of range, or files of MMEngine
            are missing. Not an ImportError, for which MMEngine's registries
            would say that the package is not installed.
    """
    for text in rival_warnings():
        warnings.warn(text, stacklevel=3)
    for module in (torch, mmengine):
        check_version(module)


def rival_warnings() -> Iterator[str]:
    """Yield a text for each package of which two distributions are here."""
    for package, rivals in RIVALS.items():
        present = [
            f'{name} {version(name)}' for name in rivals if version(name)
        ]
        if len(present) > 1:
            yield (
                f'{" and ".join(present)} are installed, and both are the '
                f'package {package}: the later has overwritten files of the '
                f'earlier. Uninstall all, then install one: pip uninstall '
                f'{" ".join(rivals)}. With pip install --no-deps nothing '
                'brings the other back (mmnanguard: docs/en/stacks.md).'
            )


def version(distribution: str) -> str:
    """Return the version of a distribution; '' if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ''


def check_version(module: ModuleType) -> None:
    """Refuse a package whose version is missing or out of range.

    Raises:
        GuardConfigError: If the version is missing or out of range.
    """
    name = module.__name__
    given = str(getattr(module, '__version__', ''))
    # pip uninstall removes files that a second distribution had overwritten.
    if not re.match(r'\d+\.\d+', given):
        rivals = ' or '.join(RIVALS.get(name, [name]))
        raise GuardConfigError(
            f'{name} in {list(module.__path__)} has no version: files are '
            'missing, as where one of two distributions of it was '
            'uninstalled. Install it again: pip install --force-reinstall '
            f'--no-deps {rivals}.'
        )
    if not is_in_range(name, given):
        raise GuardConfigError(
            f'{name} is {given}: mmnanguard needs {name}{allowed_range(name)}.'
        )


def is_in_range(package: str, given: str) -> bool:
    """Whether a version, such as '2.13.0+cpu', is in the package's range."""
    match = re.match(r'(\d+)\.(\d+)', given)
    least, below = RANGES[package]
    if not match:
        return False
    pair = int(match[1]), int(match[2])
    return pair >= least and (below is None or pair < below)


def allowed_range(package: str) -> str:
    """Return a package's range as pip has it, such as '>=0.10,<1.0'."""
    least, below = RANGES[package]
    allowed = '>={}.{}'.format(*least)
    if below is not None:
        allowed += ',<{}.{}'.format(*below)
    return allowed
