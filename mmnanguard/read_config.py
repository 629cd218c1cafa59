"""The reader of configs: files, and configs that a project ships."""

import ast
from argparse import ArgumentError
from pathlib import Path
from typing import Any, Dict, Union

from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.utils import is_installed

from mmnanguard.core import GuardConfigError

__all__ = ['OptionAction', 'read_config']


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


class OptionAction(DictAction):
    """MMEngine's ``--cfg-options``, with values such as ``dict(max_norm=35)``.

    Messages and reports of this package name config lines of this form.
    MMEngine's own action makes strings of them.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if not val.startswith('dict('):
            return DictAction._parse_iterable(val)
        try:
            return read_dict(ast.parse(val, mode='eval').body)
        except (SyntaxError, ValueError) as error:
            # The parser ends with this message.
            message = f'--cfg-options: {val} is no dict of constants'
            raise ArgumentError(None, message) from error


def read_dict(node: ast.AST) -> Any:
    """Return the value of an expression of constants and ``dict(...)``.

    Raises:
        ValueError: If there is anything else in it.
    """
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if getattr(node.func, 'id', '') != 'dict' or node.args:
        raise ValueError('a call of another function')
    values: Dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError('a **dict')
        values[keyword.arg] = read_dict(keyword.value)
    return values
