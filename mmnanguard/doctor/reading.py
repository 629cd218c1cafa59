"""The reading of a config, with errors that say what to do."""

import re
import traceback
from typing import Any, List, Mapping

from mmengine.config import Config

from mmnanguard._support.escape import escape
from mmnanguard.core import GuardConfigError
from mmnanguard.core.launch import tool_command
from mmnanguard.read_config import read_config

from .finding import Finding, fail
from .versions import CURE, PKG_RESOURCES, pkg_resources_cure

__all__ = ['explain_error', 'look_at_style', 'try_reading']

# Keys of 1.x whose meaning MMEngine has moved elsewhere.
OLD_KEYS = (
    'optimizer',
    'optimizer_config',
    'lr_config',
    'total_epochs',
    'total_iters',
    'runner',
    'checkpoint_config',
    'log_config',
    'workflow',
    'fp16',
    'data',
)
MAX_SHOWN = 4
ERRORS_OF_CODE = (SyntaxError, NameError, TypeError, AttributeError)


class UnreadableConfigError(GuardConfigError):
    """A config that cannot be read.

    Args:
        finding: What is wrong with it, and what to do.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


def try_reading(path: str) -> Config:
    """Read a config.

    Raises:
        UnreadableConfigError: With the reason, whatever the config raises.
    """
    try:
        return read_config(path)
    except Exception as error:  # a config is a program
        raise UnreadableConfigError(explain_error(path, error)) from error


def explain_error(path: str, error: Exception) -> Finding:
    """Return the finding on a config whose reading has failed."""
    if isinstance(error, GuardConfigError):
        return fail(str(error))
    name, root = escape(path), root_of(error)
    missing = getattr(root, 'name', None)
    if isinstance(root, ModuleNotFoundError) and missing == PKG_RESOURCES:
        return fail(f'{name}: {pkg_resources_cure()}.', 'Run:', CURE)
    if isinstance(root, ImportError):
        return explain_import(name, root)
    kind, place = type(root).__name__, place_of(root)
    text = f'{name} cannot be read: {kind}: {first_line(root)}{place}'
    if isinstance(root, FileNotFoundError):
        return fail(
            text, 'Paths in _base_ are relative to the file that has them.'
        )
    if 'Duplicate key' in str(root):
        return fail(
            text,
            'Two files of _base_ set this key, which MMEngine refuses: let '
            'one inherit from the other.',
        )
    if isinstance(root, ERRORS_OF_CODE):
        return fail(text, 'Configs are Python: correct the line.')
    return fail(text)


def explain_import(name: str, error: ImportError) -> Finding:
    """Return the finding on a module that a config imports in vain."""
    missing = error.name or ''
    package = missing.split('.')[0]
    # MMEngine's own errors name the module or the package in the text only.
    match = re.search(
        r'Failed to import ([\w.]+)|^(\w+) is not installed', str(error)
    )
    if not package and match:
        missing = match[1] or match[2]
        package = missing.split('.')[0]
    text = f'{name}: {first_line(error)}{place_of(error)}'
    if not package:
        return fail(text)
    return fail(
        text,
        f"Python does not find '{missing}'. If it is your own code, start "
        'from the root of your project, or name that folder in PYTHONPATH; '
        'if it is a package, install it:',
        f'PYTHONPATH=. python -m mmnanguard ...  or  pip install {package}',
    )


def root_of(error: BaseException) -> BaseException:
    """Return the error that an import or a config raised first.

    MMEngine raises an ImportError of its own, which lists the whole of
    ``sys.path``.
    """
    cause = error.__cause__ or error.__context__
    while isinstance(error, ImportError) and isinstance(cause, Exception):
        error = cause
        cause = error.__cause__ or error.__context__
    return error


def place_of(error: BaseException) -> str:
    """Return the line of the user's code that failed, as a clause."""
    if isinstance(error, SyntaxError):
        return ''
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        parts = frame.filename.replace('\\', '/')
        is_own = 'site-packages' in parts or 'mmnanguard/' in parts
        if not is_own and not parts.startswith('<'):
            return f' ({escape(frame.filename)}, line {frame.lineno})'
    return ''


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    # str() of a KeyError would quote its text.
    text = str(error.args[0]) if error.args else str(error)
    return escape((text.strip().splitlines() or [''])[0])


def look_at_style(path: str, cfg: Mapping[str, Any]) -> List[Finding]:
    """Return a finding if a config is of mmcv 1.x or mmengine 0.x.

    Args:
        path: The path of the config.
        cfg: The config as it was read.
    """
    if cfg.get('optim_wrapper') or cfg.get('train_dataloader'):
        return []
    old = [key for key in OLD_KEYS if key in cfg]
    # `data` or `runner` alone may be variables of the user's.
    if len(old) < 2:
        return []
    shown = ', '.join(old[:MAX_SHOWN])
    return [
        fail(
            f'The config is of mmcv 1.x ({shown}), which MMEngine cannot '
            'train.',
            'Migrate it with its bases, guarded, to a new folder:',
            tool_command('migrate_config', path, '--out', 'migrated'),
        )
    ]
