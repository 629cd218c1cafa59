"""The state of one accumulation window, which ends with an update."""

from typing import Dict, List, Optional
from weakref import ref

from mmengine.logging import MessageHub
from torch import Tensor, nn

from mmnanguard.core import Observation
from mmnanguard.core.checks import check_keys
from mmnanguard.numerics.snapshot.change_tracker import (
    ChangeTracker,
    OtherOptimizers,
)
from mmnanguard.numerics.snapshot.snapshot import Snapshot

from .coverage_warnings import PATIENCE, CoverageWarnings
from .guarded_params import GuardedParams

__all__ = ['Passes', 'Window', 'Windows']


class Window:
    """One window, which is judged as a whole by its final gradients.

    Args:
        snapshot: The copies of what the window's forward passes change.

    Attributes:
        losses: The loss of each backward pass, detached.
        iterations: The iteration of each of these backward passes, counted
            from 0; empty if no loop counts them.
        facts: The flags that were raised for this window, by name.
        num_batches: Number of micro-batches that were judged one by one.
        has_gradients: Whether ``param.grad`` holds the window's gradients,
            once the last backward pass is over.
    """

    # Constants here; only MicroBatchWindow sets them.
    num_batches = 0
    has_gradients = True

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.losses: List[Tensor] = []
        self.iterations: List[int] = []
        self.facts: Dict[str, List[Tensor]] = {}
        # The flags of a forward pass that has had no backward pass yet.
        self._pending_facts: List[Tensor] = []

    @property
    def is_open(self) -> bool:
        """Whether a backward pass has run in this window."""
        return bool(self.losses)

    def enter(self, model: nn.Module) -> None:
        """Prepare for a forward pass of ``model``; no sync."""
        self.snapshot.take(model)

    def forget_models(self) -> None:
        """Drop the copies of all models that were entered."""
        self.snapshot = Snapshot(self.snapshot.tracker)

    def add_loss(self, loss: Tensor, iteration: Optional[int] = None) -> None:
        """Note the loss of one finished backward pass; no sync."""
        # Detached, or the loss would keep its graph alive until the step.
        value = loss.detach()
        self.losses.append(value if value.dim() == 0 else value.sum())
        self._note_backward(iteration)

    def _note_backward(self, iteration: Optional[int]) -> None:
        if iteration is not None:
            self.iterations.append(iteration)
        self._pending_facts = []

    def add_fact(self, name: str, flag: Tensor) -> None:
        """Raise a flag for this window, see :meth:`Guard.add_fact`."""
        check_keys([name], ['input'], 'add_fact')
        self.facts.setdefault(name, []).append(flag)
        self._pending_facts.append(flag)

    def holds_gradients(self, params: GuardedParams) -> bool:
        """Whether gradients of this window exist; no sync."""
        return params.have_gradients()

    def drop_pending(self) -> None:
        """Forget a forward pass of an earlier iteration without a backward.

        Its flags would be taken for those of the next forward pass.
        """
        pending = set(map(id, self._pending_facts))
        for name, flags in self.facts.items():
            self.facts[name] = [f for f in flags if id(f) not in pending]
        self._pending_facts = []

    def judge_last(self) -> None:
        """Judge the last micro-batch by itself; does nothing here."""

    def sum_gradients(self) -> None:
        """Let ``param.grad`` hold the window's gradients, as it does here."""

    def drop_gradients(self) -> None:
        """Forget all backward passes: the user has set gradients to zero."""
        self.losses, self.iterations, self.facts = [], [], {}

    def complete(self, seen: Observation) -> Observation:
        """Add the micro-batches that were left out to an observation."""
        return seen


class Windows:
    """Opens the windows of one optimizer.

    Args:
        others: The other optimizers of the run.

    Attributes:
        is_local: Whether ranks exchange nothing in backward passes.
        num_left_out: Number of micro-batches left out so far.
    """

    is_local = False
    num_left_out = 0

    def __init__(self, others: OtherOptimizers) -> None:
        self._tracker = ChangeTracker(others)

    def open(self) -> Window:
        """Return a new window."""
        return Window(Snapshot(self._tracker))


class Passes:
    """The forward and backward passes of one optimizer, cut into windows.

    Args:
        params: The optimizer's parameters.

    Attributes:
        params: The optimizer's parameters.
        accumulation: The opener of the windows.
        window: The present window.
        coverage_warnings: The warnings about code that bypasses the guard.
        models: The models that were entered, as an ordered set.
        name: Key in the ``OptimWrapperDict``, set by ``NanGuardHook``.
        num_backwards: Number of finished backward passes of the wrapper.
    """

    accumulation: Windows
    window: Window

    def __init__(self, params: GuardedParams) -> None:
        self.params = params
        self.models: Dict[nn.Module, None] = {}  # an ordered set
        self.num_backwards = 0
        self.name = 'default'
        # A method of the guard would keep the guard alive.
        guard = ref(self)
        self.coverage_warnings = CoverageWarnings(
            params, lambda: getattr(guard(), 'name', '')
        )
        self._message_hub = MessageHub.get_current_instance()
        self._iteration: Optional[int] = None
        self._is_in_window = False
        self._num_iters = 0

    def _begin(self) -> None:
        """Note that a forward or backward pass is about to be."""
        iteration = self._message_hub.get_info('iter')
        if iteration != self._iteration:
            self._iteration = iteration
            self._num_iters += 1
            if self._num_iters > PATIENCE:
                self.coverage_warnings.look_for_bypass(
                    self._num_iters, self.is_open
                )
            if self._is_in_window:
                self._leave_abandoned()
        self._is_in_window = True

    def _enter(self, model: nn.Module) -> None:
        if model not in self.models:
            self.models[model] = None
            self.coverage_warnings.check_comm_hooks(model)
        self.window.enter(model)

    def _leave_abandoned(self) -> None:
        """Forget what earlier iterations began and did not end.

        An out-of-memory error that the user catches, or an early return,
        leaves a forward pass without a backward pass, or a backward pass
        whose gradients are gone. Neither is a part of the present update.
        """
        if self.window.holds_gradients(self.params):
            self.window.drop_pending()
        else:
            self.window = self.accumulation.open()

    def drop_gradients(self) -> None:
        """Forget the backward passes whose gradients the user has zeroed.

        Syncs the device if there are any.
        """
        # The step before has ended the window, as a rule.
        if not (self._is_in_window and self.is_open):
            return
        # Micro-batches that were judged have left param.grad.
        if self.window.num_batches or not self.params.have_nonzero_gradients():
            self.window.drop_gradients()

    @property
    def is_open(self) -> bool:
        """Whether a backward pass has run since the last step."""
        return self.window.is_open

    @property
    def facts(self) -> Dict[str, List[Tensor]]:
        """The flags that were raised for the present window, by name."""
        return self.window.facts

    @property
    def losses(self) -> List[Tensor]:
        """The losses of the present window's backward passes, detached."""
        return self.window.losses

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of one finished backward pass; no sync."""
        self._begin()
        self.num_backwards += 1
        self.window.add_loss(loss, self._iteration)

    def add_fact(self, name: str, flag: Tensor) -> None:
        """Raise a flag for the present window; no sync.

        Args:
            name: The name of the flag; 'input' is the only one.
            flag: The flag, a 0-dim tensor; non-zero means bad.

        Raises:
            GuardConfigError: For another name.
        """
        self._begin()
        self.window.add_fact(name, flag)

    def end_window(self) -> None:
        """End the window, and open the next one."""
        self._is_in_window = False
        self._num_iters = 0
        # A new object, so that nothing of the old window can survive.
        self.window = self.accumulation.open()
