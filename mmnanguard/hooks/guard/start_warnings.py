"""The warnings about a run that the guard gives before it trains."""

import logging
from typing import Collection

from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core.hook_source import ENDS_INSTEAD, ENDS_RUN, ends_run

from .._shared.find_guards import find_wrappers, how_to_guard_wrapper
from .check_listeners import misspelt_methods

__all__ = ['warn_at_start']

# Keys of 1.x configs, and the setting of 2.x for each. MMEngine ignores them
# silently, so that a user believes in a loss scale or clipping that is off.
LEFTOVERS = {
    'fp16': "optim_wrapper=dict(type='mmnanguard.NanGuardAmpOptimWrapper', "
    'loss_scale=...)',
    'optimizer_config': 'optim_wrapper=dict(clip_grad=dict(max_norm=...))',
}


def warn_at_start(runner: Runner, guarded: Collection[str]) -> None:
    """Warn of unguarded optimizers, and of names that nothing reads.

    Args:
        runner: The runner.
        guarded: The names of the optimizers that have a guard.
    """
    for name, wrapper in find_wrappers(runner).items():
        if name not in guarded:
            kind = type(wrapper).__name__
            say(
                f"mmnanguard: optimizer '{name}' is run by {kind}: ITS "
                f'UPDATES ARE NOT GUARDED. {how_to_guard_wrapper(wrapper)}',
                logging.ERROR,
                runner.logger,
            )
    for hook in runner.hooks:
        if guarded and ends_run(type(hook)):
            say(
                f'mmnanguard: {type(hook).__name__} {ENDS_RUN}. '
                f'Remove the hook; {ENDS_INSTEAD}.',
                logging.WARNING,
                runner.logger,
            )
    for warning in misspelt_methods(runner.hooks):
        say(f'mmnanguard: {warning}', logging.WARNING, runner.logger)
    for key, setting in LEFTOVERS.items():
        if runner.cfg.get(key) is not None:
            say(
                f'mmnanguard: the config has `{key}`, a 1.x key that '
                f'MMEngine ignores. In 2.x write {setting}.',
                logging.WARNING,
                runner.logger,
            )
