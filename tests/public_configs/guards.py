"""The guards on a config of 2.x."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

from mmengine.config import Config

from mmnanguard.core import GuardConfigError
from mmnanguard.optim import apply_guard as guarded
from public_configs.compare import INVALID_LOSS
from public_configs.facts import agree
from public_configs.stubs import stubbed_packages

GUARDS = ('fp32', 'bf16', 'fp16', 'full')
REFUSED = 'refused'
# Keys that a guard changes. With DeepSpeed it sets precision and clipping in
# the strategy.
CHANGED = ('optim_wrapper', 'default_hooks', 'custom_hooks', 'strategy')


def problems_of(leaf: Path, guard: str) -> List[str]:
    """Return what is wrong with a config under a guard.

    ``REFUSED`` stands for an error of ``apply_guard`` itself, which says what
    to do.
    """
    cfg = Config.fromfile(str(leaf), import_custom_modules=False)
    with log_of_guard() as log, stubbed_packages():
        try:
            new = guarded(cfg, guard).to_dict()
        except GuardConfigError:
            return [REFUSED]
        except Exception as error:
            return [f'crashed: {type(error).__name__}: {error}']
    return compare_guarded(cfg.to_dict(), new, log.getvalue())


def compare_guarded(
    old: Mapping[str, Any], new: Mapping[str, Any], log: str
) -> List[str]:
    """Return what a guard lost or left.

    Args:
        old: The config.
        new: Its guarded form.
        log: The lines that the user saw.
    """
    problems = []
    hooks: Dict[str, Any] = new.get('default_hooks') or {}
    for key, hook in (old.get('default_hooks') or {}).items():
        is_invalid_loss = INVALID_LOSS in str(hook)
        if not (agree(hook, hooks.get(key)) or is_invalid_loss):
            problems.append(f'default_hooks.{key} is lost')
    wrapper = old.get('optim_wrapper') or {}
    if 'optimizer' in wrapper and 'nan_guard' not in hooks:
        problems.append('there is no NanGuardHook')
    all_hooks = str([hooks, new.get('custom_hooks')])
    if INVALID_LOSS in all_hooks and INVALID_LOSS not in log:
        problems.append(f'{INVALID_LOSS} is neither removed nor named')
    for key, value in old.items():
        if key not in CHANGED and not agree(value, new.get(key)):
            problems.append(f'{key} is changed')
    return problems


@contextlib.contextmanager
def log_of_guard() -> Iterator[io.StringIO]:
    """Collect the lines that MMEngine's ``print_log`` prints or logs."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    disabled = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    root.addHandler(handler)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield log
    finally:
        root.removeHandler(handler)
        logging.disable(disabled)
