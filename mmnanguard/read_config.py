from pathlib import Path
from typing import Any, Union

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.utils import is_installed

from mmnanguard.core import GuardConfigError

__all__ = ['read_config']


def read_config(path: Union[str, Path], **keys: Any) -> Config:
    """``Config.fromfile``, also of a project's config by its name.

    MMEngine's ``get_config`` installs a project that is missing, with all
    that it needs, and asks nobody.

    Args:
        path: Of a file, or a name such as 'mmpretrain::resnet/x.py'.
        keys: For ``Config.fromfile``.

    Raises:
        GuardConfigError: If there is no such file or project.
    """
    project, _, name = str(path).rpartition('::')
    if not project and not Path(name).is_file():
        raise GuardConfigError(f'{path}: there is no such config.')
    if not project:
        return Config.fromfile(name, **keys)
    package = MODULE2PACKAGE.get(project)
    if package is None:
        raise GuardConfigError(
            f'{path}: MMEngine knows no project {project}, but '
            f'{", ".join(sorted(MODULE2PACKAGE))}.'
        )
    if not is_installed(package):
        raise GuardConfigError(
            f'{path}: {package} is not installed. Install it, or give the '
            'path of a file.'
        )
    try:
        return get_config(str(path))
    except FileNotFoundError as error:
        raise GuardConfigError(f'{path}: {error}') from error
