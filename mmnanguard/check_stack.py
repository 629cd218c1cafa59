import re
import warnings
from importlib import metadata
from types import ModuleType

from mmnanguard.core.errors import GuardConfigError

__all__ = ['check_stack']

# From this version on, and below that one.
RANGES = {'torch': ((2, 1), None), 'mmengine': ((0, 10), (1, 0))}
# Distributions that put their files into one and the same folder.
RIVALS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite', 'onedl-mmcv'),
}


def check_stack(torch: ModuleType, mmengine: ModuleType) -> None:
    """Refuse versions that the guard does not work with, at its import.

    Two distributions of one package are warned of: which files are whose is
    known to none.

    Raises:
        GuardConfigError: If a version is out of range, or files of MMEngine
            are missing. Not an ImportError, for which MMEngine's registries
            would say that the package is not installed.
    """
    for package, rivals in RIVALS.items():
        found = [f'{name} {version(name)}' for name in rivals if version(name)]
        if len(found) > 1:
            warnings.warn(
                f'{" and ".join(found)} are installed, and both are the '
                f'package {package}: the later has overwritten files of the '
                f'earlier. Uninstall all, then install one: pip uninstall '
                f'{" ".join(rivals)}. With pip install --no-deps nothing '
                'brings the other back (mmnanguard: docs/en/stacks.md).',
                stacklevel=3,
            )
    for module in (torch, mmengine):
        check_version(module)


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ''


def check_version(module: ModuleType) -> None:
    name = module.__name__
    least, below = RANGES[name]
    given = str(getattr(module, '__version__', ''))
    found = re.match(r'(\d+)\.(\d+)', given)
    if not found:
        rivals = ' or '.join(RIVALS.get(name, [name]))
        raise GuardConfigError(
            f'{name} in {list(module.__path__)} has no version: files are '
            'missing, as where one of two distributions of it was '
            'uninstalled. Install it again: pip install --force-reinstall '
            f'--no-deps {rivals}.'
        )
    pair = int(found[1]), int(found[2])
    if pair < least or (below is not None and pair >= below):
        allowed = '>={}.{}'.format(*least)
        if below is not None:
            allowed += ',<{}.{}'.format(*below)
        raise GuardConfigError(
            f'{name} is {given}: mmnanguard needs {name}{allowed}.'
        )
