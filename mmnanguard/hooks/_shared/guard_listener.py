"""The base of hooks that listen to the guard.

``NanGuardHook``, ``StateAuditHook`` and the hooks that examine an event call
three more methods of every hook of a run, by ``Runner.call_hook``. MMEngine
looks for a method by its name, so any hook can have these methods;
``GuardListener`` documents their names, arguments and types.
"""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard.core import GuardEvent

from .audit import Audit
from .hook_arguments import Row

__all__ = ['LISTENER_METHODS', 'GuardListener']

# Each method's name, and the keyword that it is called with beside the runner.
# MMEngine never reports a misspelt name, so the start of training compares the
# methods of all hooks with these.
LISTENER_METHODS = {
    'after_guard_event': 'event',
    'after_guard_row': 'row',
    'after_audit': 'audit',
}


class GuardListener(Hook):
    """A hook that is called with what the guard did; override what you need.

    The methods are called in the order of the hooks' priorities, after the
    guarded update, from ``after_train_iter`` of the hook that calls them.
    With several ranks they run on all of them, so a method that writes a file
    first asks ``mmengine.dist.is_main_process()``. An exception in a method
    ends training. ``NanGuardHook`` has to be among the hooks of the run.
    """

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Take note of an update that was not a plain step.

        Called by ``NanGuardHook`` once per event on all ranks, with the same
        event: rejected updates, overflows of the loss scale
        (``event.is_routine``) and updates that were committed with a remark
        (a spike, a micro-batch left out). The state is already restored; a
        halt comes after all hooks have been called.

        Args:
            runner: Runner of the training.
            event: Frozen record; ``event.to_row()`` is its row in
                ``events.jsonl`` and ``event.line()`` its console line.
        """

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Take note of any other row of ``events.jsonl``.

        Called for autopsies, dumps, remedies, inputs, rollbacks, audits,
        bypasses and halts; ``after_guard_event`` has the updates.
        docs/en/events.md has the fields of each kind. Some audits concern one
        rank only, so do nothing collective here.

        Args:
            runner: Runner of the training.
            row: The row. Its ``kind`` names the kind of row, its ``id`` the
                event that the row belongs to. All listeners share the dict:
                do not change it.
        """

    def after_audit(self, runner: Runner, audit: Audit) -> None:
        """Repair a state that an audit found to be bad.

        Called by ``StateAuditHook`` on all ranks, before it halts the run,
        when weights, buffers, optimizer or averages hold NaN or Inf.

        Args:
            runner: Runner of the training.
            audit: Result of the audit. A hook that has repaired the state sets
                ``audit.is_handled = True`` on all ranks; training goes on.
        """
