"""Schedules that count updates in place of iterations."""

from typing import Any, Dict, List, Mapping, Tuple

from mmengine.hooks import ParamSchedulerHook
from mmengine.runner import Runner

from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_schedulers
from .._shared.patches import Patches

__all__ = ['ScheduleFreeze']


class ScheduleFreeze:
    """Takes back the steps that schedules made in a rejected window.

    ``ParamSchedulerHook`` advances in each iteration, whether the update was
    committed or rejected. An attached ``ScheduleFreeze`` lets it, and then
    brings the schedules of an optimizer whose update was rejected back to the
    beginning of the window. Schedules that count epochs are left alone.

    Args:
        guards: The guards, by the name of the optimizer.
    """

    def __init__(self, guards: Mapping[str, GuardProtocol]) -> None:
        self._guards = guards
        self._before: Dict[str, Tuple[int, int]] = {}
        self._copies: Dict[str, List[ScheduleCopy]] = {}

    def attach(self, runner: Runner, patches: Patches) -> None:
        """Take back steps after each ``ParamSchedulerHook``."""
        for hook in runner.hooks:
            if not isinstance(hook, ParamSchedulerHook):
                continue
            advance = hook.after_train_iter

            # One hook at a time, so that each keeps its own method.
            def after_train_iter(
                *args: object, _advance: Any = advance, **kwargs: object
            ) -> None:
                _advance(*args, **kwargs)
                self._take_back()

            patches.replace(hook, 'after_train_iter', after_train_iter)

    def begin_iter(self, runner: Runner) -> None:
        """Copy the schedules of each optimizer whose window begins."""
        schedulers = find_schedulers(runner)
        for name, guard in self._guards.items():
            self._before[name] = counters(guard)
            if guard.is_open:
                continue
            self._copies[name] = []
            for scheduler in schedulers[name]:
                if not scheduler.by_epoch:
                    self._copies[name].append(ScheduleCopy(scheduler))

    def _take_back(self) -> None:
        for name, guard in self._guards.items():
            verdicts, commits = self._before.get(name, counters(guard))
            if guard.state.num_updates == verdicts:
                continue
            if guard.state.num_steps == commits:
                for copy in self._copies[name]:
                    copy.restore()


class ScheduleCopy:
    """A schedule's progress, and the values that it has set.

    Args:
        scheduler: A scheduler of MMEngine.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        # Schedulers replace what they keep; they change nothing in place.
        self._state = dict(scheduler.state_dict())
        groups = scheduler.optimizer.param_groups
        self._values = [group[scheduler.param_name] for group in groups]

    def restore(self) -> None:
        """Bring back the progress and the values."""
        scheduler = self._scheduler
        scheduler.load_state_dict(self._state)
        for group, value in zip(
            scheduler.optimizer.param_groups, self._values
        ):
            group[scheduler.param_name] = value


def counters(guard: GuardProtocol) -> Tuple[int, int]:
    """Return the number of verdicts so far, and of commits among them."""
    return guard.state.num_updates, guard.state.num_steps
