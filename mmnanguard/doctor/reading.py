"""The reading of a config, with errors that say what to do."""

import re
import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, List, Mapping, Tuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmnanguard._support.escape import escape, shell_word
from mmnanguard.core import GuardConfigError
from mmnanguard.core.launch import tool_command
from mmnanguard.read_config import read_config

from .finding import Finding, fail
from .versions import CURE, PKG_RESOURCES, pkg_resources_cure

__all__ = [
    'UnreadableConfigError',
    'cure_of_missing',
    'explain_error',
    'look_at_style',
    'try_reading',
]

PACKAGE = Path(__file__).parents[1]

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
        cfg = read_config(path)
        import_types(cfg._cfg_dict)
    except Exception as error:  # a config is a program
        finding = explain_error(path, error)
        # What a 1.x config imports may need mmcv 1.x.
        if isinstance(error, ImportError):
            with suppress(Exception):
                unimported = read_config(path, import_custom_modules=False)
                finding = [*look_at_style(path, unimported), finding][0]
        raise UnreadableConfigError(finding) from error
    return cfg


def import_types(node: Any) -> None:
    """Import the types that a new-style config names by its imports.

    Training would import them one by one.
    """
    if isinstance(node, Mapping):
        # MMEngine imports a lazy value where it is read.
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            import_types(value)


def explain_error(path: str, error: Exception) -> Finding:
    """Return the finding on a config whose reading has failed."""
    if getattr(error.__cause__, 'name', '') == PKG_RESOURCES:
        return fail(f'{escape(path)}: {pkg_resources_cure()}.', 'Run:', CURE)
    if isinstance(error, GuardConfigError):
        return fail(str(error))
    name, root = escape(path), root_of(error)
    if isinstance(root, ImportError):
        return explain_import(path, root)
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


def explain_import(path: str, error: ImportError) -> Finding:
    """Return the finding on a module that a config imports in vain."""
    module = error.name or ''
    # MMEngine's own errors name the module or the package in the text only.
    match = re.search(
        r'Failed to import ([\w.]+)|^([\w-]+) is not installed', str(error)
    )
    if not module and match:
        module = match[1] or match[2]
    text = f'{escape(path)}: {first_line(error)}{place_of(error)}'
    package = module.split('.')[0]
    if not package:
        return fail(text)
    return fail(text, *cure_of_missing(package, path))


def cure_of_missing(package: str, path: str) -> Tuple[str, str]:
    """Return what to do about a package that Python does not find.

    Args:
        package: The name of the package.
        path: The path of the config, which may lie in the project.

    Returns:
        A sentence, and a command, which may be empty.
    """
    if package in MODULE2PACKAGE or package in MODULE2PACKAGE.values():
        project = MODULE2PACKAGE.get(package, package)
        return f'Install {project} (pip install openmim has mim):', (
            f'mim install {project}'
        )
    for folder in Path(path).resolve().parents:
        if (folder / package).is_dir() or (folder / f'{package}.py').is_file():
            command = tool_command('doctor', path)
            return (
                f'{package} lies in {escape(folder)}; Python finds it with:',
                f'PYTHONPATH={shell_word(folder)} {command}',
            )
    return (
        f"Python does not find '{package}'. If it is code of your project, "
        'start from its root, or name that folder in PYTHONPATH; otherwise '
        'install it.',
        '',
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
    # Its message has the line.
    if isinstance(error, SyntaxError):
        return ''
    stdlib = sysconfig.get_paths()['stdlib']
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = frame.filename
        is_foreign = 'site-packages' in file or file.startswith(('<', stdlib))
        if not is_foreign and PACKAGE not in Path(file).parents:
            return f' ({escape(frame.filename)}, line {frame.lineno})'
    return ''


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    text = str(error)
    # It would quote its text.
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    return escape((text.strip().splitlines() or [''])[0])


def look_at_style(path: str, cfg: Config) -> List[Finding]:
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
