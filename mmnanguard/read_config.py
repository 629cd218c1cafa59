"""The reader of configs: files, and configs that a project ships."""

from pathlib import Path
from typing import Any, Union

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.utils import is_installed

from mmnanguard.core import GuardConfigError

__all__ = ['read_config']

NO_PKG_RESOURCES = (
    'MMEngine finds configs by name with pkg_resources, which the installed '
    "setuptools no longer has. Run pip install 'setuptools<81', or give the "
    'path of a file.'
)


def read_config(path: Union[str, Path], **keys: Any) -> Config:
    """Read a config from a file, or a project's config by its name.

    MMEngine's ``get_config`` would install a missing project with all its
    requirements, without asking; this function refuses instead.

    Args:
        path: The path of a file, or a name such as
            'mmpretrain::resnet/x.py'.
        keys: The options of ``Config.fromfile``, for a file.

    Raises:
        GuardConfigError: If there is no such file or project.
    """
    project, _, name = str(path).rpartition('::')
    if not project and not Path(name).is_file():
        raise GuardConfigError(f'{path}: there is no such config.')
    if not project:
        try:
            return Config.fromfile(name, **keys)
        except ModuleNotFoundError as error:
            if error.name != 'pkg_resources':
                raise
            # For a _base_ by name, such as 'mmdet::...'.
            raise GuardConfigError(NO_PKG_RESOURCES) from error
    package = MODULE2PACKAGE.get(project)
    if package is None:
        raise GuardConfigError(
            f'{path}: MMEngine knows no project {project}, but '
            f'{", ".join(sorted(MODULE2PACKAGE))}.'
        )
    if not is_known_to_be_installed(package):
        raise GuardConfigError(
            f'{path}: {package} is not installed. Install it, or give the '
            'path of a file.'
        )
    try:
        return get_config(str(path))
    except FileNotFoundError as error:
        raise GuardConfigError(f'{path}: {error}') from error


def is_known_to_be_installed(package: str) -> bool:
    """Whether MMEngine finds a distribution by its name.

    Raises:
        GuardConfigError: If MMEngine cannot look: it needs pkg_resources,
            which later versions of setuptools do not have.
    """
    try:
        return bool(is_installed(package))
    except ModuleNotFoundError as error:
        if error.name != 'pkg_resources':
            raise
        raise GuardConfigError(NO_PKG_RESOURCES) from error
