"""The checks that refuse a run before it trains."""

from typing import Mapping

from mmengine.runner import Runner

from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_wrappers
from .._shared.roles import has_hook
from ..recovery.rollback_hook import RollbackHook
from .check_engine import check_engine
from .check_listeners import check_signatures
from .check_rollback import check_rollback

__all__ = ['check_start']


def check_start(runner: Runner, guards: Mapping[str, GuardProtocol]) -> None:
    """Refuse guards and hooks that cannot work in this run.

    Raises:
        GuardConfigError: If a guard passes an engine by, cannot roll back, or
            a hook takes other arguments than it will get.
    """
    wrappers = find_wrappers(runner)
    check_engine(runner.model, {name: wrappers[name] for name in guards})
    check_rollback(guards, has_hook(runner, RollbackHook))
    check_signatures(runner.hooks)
