"""The hook that warns before an update goes bad."""

import logging
from typing import Dict, Optional, Sequence, Set, Union

from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.rollback_row import RollbackRow
from mmnanguard.core.stability.limits import StabilityLimits
from mmnanguard.core.stability.margins import margins
from mmnanguard.core.stability.monitor import Judgement, Monitor
from mmnanguard.core.stability.sample import Sample
from mmnanguard.core.stability.schedule import is_due
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.stability.failsafe import Failsafe
from mmnanguard.numerics.stability.window_probe import WindowProbe
from mmnanguard.registry import HOOKS

from .._shared.bare_model import bare_model
from .._shared.compiled import is_compiled
from .._shared.find_guards import find_guards, longest_window
from .._shared.hook_arguments import Checkpoint, DataBatch, Outputs, Row
from .._shared.patches import PatchingHook
from .acts import Acts
from .measured import (
    find_parts,
    guarded_scale,
    highest_lr,
    is_adaptive,
    loss_scale_of,
)
from .records import Records

__all__ = ['StabilityMonitorHook']

KEY = 'nanguard_stability'
# Number of iterations after which the losses of the last ones are judged.
READ_EVERY = 16


@HOOKS.register_module()
class StabilityMonitorHook(PatchingHook):
    """Warns before an update goes bad: which module, and how long ahead.

    A sample measures one window: the largest output of each module, the
    largest argument of each softmax, the smallest of each root, logarithm and
    denominator, the size of the update beside the weights, and with a loss
    scale the largest gradient. In the other iterations nothing is measured. A
    sample changes no number of the training and draws no random number; it
    reads the device once. With several ranks it is collective, and all ranks
    tell the same alerts.

    An alert is a console line and a row of kind 'alert'. It says that a number
    is far outside of what runs that learn look like, not that the run will
    fail. docs/en/stability.md describes each of them. The samples are in
    ``<log_dir>/nanguard/stability.jsonl``, and as scalars
    ``stability/*`` in every visualizer backend.

    It also works beside wrappers that are not guarded, but for the rules for
    losses and falls of the loss scale. A measurement that fails never raises:
    its sample is left out, and the log says so once. Compiled models run no
    module hooks, so only weights, losses and the loss scale are measured.

    Args:
        interval: Number of iterations between two samples. They are five
            times as dense in the first five intervals, and ten times as dense
            for an interval when a number is above half its limit.
        headroom: Bits between the largest float16 output of a module and
            65504, inclusive and at most 16, from which the monitor warns in
            any case. It warns earlier of outputs that grow. None switches
            this rule off, as it does for the next six.
        update_ratio: Limit, exclusive, on the median of the L2 norm of an
            update divided by that of the weight. 'auto' is 0.05, and 0.02
            for optimizers such as Adam.
        attention_logits: Limit, inclusive, on the argument of a softmax, as
            in Megatron and in QK-Clip (Kimi K2, arXiv:2507.20534).
        underflow: Limit, exclusive, below which the largest scaled gradient
            that is made in float16 is too small: other gradients become 0.
        scale_falls: Number of times that the loss scale falls within 100
            iterations, after the first 20.
        diverging: Limit, exclusive, on the median loss, as a share of the way
            back from the lowest median to the first one.
        operands: Limit, exclusive, below which the argument of a root or a
            logarithm, or a denominator, is close to 0 if it keeps falling.
        act: The advice that the monitor puts into effect by itself. 'fp32'
            has ``Fp32ModulesHook``, which the run then needs, run modules in
            float32 before their outputs overflow float16. 'scale' raises the
            loss scale of guarded wrappers when gradients vanish. Both lower
            it before gradients overflow. 'lr' halves the learning rates of
            guarded wrappers outside the schedule, for good, when updates or
            attention logits are too large. Each change, but for a lower loss
            scale, is a row of kind 'remedy'.
        max_actions: Number of such changes in the run, resumes included.

    Raises:
        GuardConfigError: If an argument is not allowed, and at the start of
            training if a part that ``act`` needs is missing.
    """

    # Before NanGuardHook, whose listeners replay the window.
    priority = 'HIGH'

    def __init__(
        self,
        interval: int = 50,
        headroom: Optional[float] = StabilityLimits.headroom,
        update_ratio: Union[str, float, None] = StabilityLimits.update_ratio,
        attention_logits: Optional[float] = StabilityLimits.attention_logits,
        underflow: Optional[float] = StabilityLimits.underflow,
        scale_falls: Optional[int] = StabilityLimits.scale_falls,
        diverging: Optional[float] = StabilityLimits.diverging,
        operands: Optional[float] = StabilityLimits.operands,
        act: Sequence[str] = (),
        max_actions: int = 8,
    ) -> None:
        super().__init__()
        check_value(
            is_count(interval, least=1),
            'StabilityMonitorHook.interval',
            interval,
            'a number of iterations above 0',
        )
        self._interval = interval
        self._limits = StabilityLimits(
            headroom,
            update_ratio,
            attention_logits,
            underflow,
            scale_falls,
            diverging,
            operands,
        )
        self._acts = Acts(act, max_actions)
        self._monitor = Monitor()
        self._probe: Optional[WindowProbe] = None
        self._zeros: Set[str] = set()
        self._last: Optional[Sample] = None
        self._num_alerts = 0
        self._guards: Dict[str, GuardProtocol] = {}
        self._is_due = self._is_running = self._has_told_margins = False
        # Whether a sample has to look outside of the model's forward pass.
        self._is_partial = False

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        # Before a checkpoint is loaded.
        self._is_due = False
        self._acts.prepare(runner)

    def before_train(self, runner: Runner) -> None:
        # Once, because each iteration asks for them.
        self._guards = find_guards(runner)
        self._has_scale = guarded_scale(self._guards) is not None
        self._acts.check(runner)
        self._is_running = self._has_told_margins = False
        self._last = None
        self._records = Records(runner)
        self._is_compiled = is_compiled(runner.model)
        if self._is_compiled:
            say(
                'mmnanguard: the model is compiled, so its modules cannot be '
                'measured: StabilityMonitorHook watches weights, losses and '
                'the loss scale',
                logging.INFO,
                runner.logger,
            )
        self.patches.remember(self._drop)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        """Begin a sample, if one is due and a window begins."""
        # The last iteration has no end if an error in it was caught.
        if self._is_running:
            self._drop()
        self._is_running = True
        done = runner.iter
        if done % READ_EVERY == 0:
            self._read_commits(runner)
        if self._has_scale:
            self._read_scale(runner)
        watch_until = self._monitor.watch_until
        if self._acts.is_watching:
            watch_until = done + 1
        if is_due(done, self._interval, watch_until):
            self._is_due = True
        self._is_due = self._is_due or self._acts.wants_sample
        if not self._is_due or self._goes_on(runner):
            return
        self._is_due = False
        self._drop()
        failsafe = Failsafe()
        failsafe.run(str, self._begin, runner)
        self._records.add_failure(failsafe.failure)

    def _begin(self, runner: Runner) -> None:
        """Begin a sample."""
        modules, weights = find_parts(runner)
        if self._is_compiled:
            modules = {}
        self._probe = WindowProbe(
            modules,
            weights,
            self._zeros,
            loss_scale_of(runner, self._guards),
            None if self._is_partial else bare_model(runner.model),
        )
        self._acts.begin(modules, self._probe.failsafe)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """End a sample with the window, and judge it."""
        self._is_running = False
        if self._probe is None or self._goes_on(runner, 1):
            return
        iteration = runner.iter + 1
        self._is_partial = self._is_partial or self._probe.is_partial
        self._acts.end(runner, self._monitor)
        sample = self._probe.sample(
            iteration, highest_lr(runner), is_adaptive(runner)
        )
        failure = self._probe.failsafe.failure
        self._drop()
        if sample is None:
            self._records.add_failure(failure or 'an error of another rank')
            return
        self._last = sample
        losses = {
            name: [commit.loss for commit in guard.state.recent_commits]
            for name, guard in self._guards.items()
        }
        self._tell(
            runner,
            self._monitor.after(sample, self._limits, self._interval, losses),
        )
        self._acts.after_sample(runner, sample, self._monitor, self._limits)
        self._records.add(sample)
        if iteration > 5 * self._interval:
            self._tell_margins(runner)

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Forget the trends when the run goes back to an earlier state."""
        if row['kind'] == RollbackRow.KIND:
            # A window that goes on would compare weights of before.
            self._drop()
            self._monitor = self._monitor.after_rollback()

    def _read_scale(self, runner: Runner) -> None:
        """Judge the loss scale of a guarded wrapper."""
        scale = guarded_scale(self._guards)
        if scale is not None:
            self._tell(
                runner,
                self._monitor.after_scale(
                    runner.iter + 1, scale, self._limits
                ),
            )

    def _read_commits(self, runner: Runner) -> None:
        """Judge the losses since the last call; the guards keep 64 of them."""
        for name, guard in self._guards.items():
            commits = guard.state.recent_commits
            self._tell(
                runner,
                self._monitor.after_commit(
                    runner.iter, name, commits, self._limits
                ),
            )

    def before_val(self, runner: Runner) -> None:
        # A validation in the middle of a window runs the modules as well.
        self._acts.drop()
        if self._probe is not None:
            self._probe.pause()

    def after_val(self, runner: Runner) -> None:
        if self._probe is not None:
            self._probe.resume()

    def after_train(self, runner: Runner) -> None:
        self._tell_margins(runner)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Save the trends, for a resumed run."""
        checkpoint[KEY] = {
            'monitor': self._monitor.to_dict(),
            'zeros': sorted(self._zeros),
            'is_partial': self._is_partial,
            'is_due': self._is_due,
            'acts': self._acts.to_dict(),
        }

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Load the trends of a resumed run."""
        saved = checkpoint.get(KEY)
        if saved is not None and runner._resume:
            self._monitor = Monitor.from_dict(saved['monitor'])
            self._zeros = set(saved['zeros'])
            self._is_partial = saved.get('is_partial', False)
            self._is_due = saved.get('is_due', False)
            self._acts.load(runner, saved['acts'])

    def _drop(self) -> None:
        """End a sample that is not finished, without a result."""
        self._acts.drop()
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _tell(self, runner: Runner, judgement: Judgement) -> None:
        """Log the alerts, and hand them to all hooks."""
        self._monitor = judgement.monitor
        for alert in judgement.alerts:
            guard = next(iter(self._guards.values()), None)
            if guard is not None:
                alert = alert.replace(run=guard.run, attempt=guard.attempt)
            if not alert.id:
                self._num_alerts += 1
                number = self._num_alerts
                alert = alert.replace(
                    id=f'{alert.run}-{alert.iter}-alert.{number}'
                )
            if alert.cleared is None:
                alert = self._acts.announce(alert)
            self._monitor = self._monitor.with_told(alert)
            is_new = alert.cleared is None
            level = logging.WARNING if is_new else logging.INFO
            say(alert.line(), level, runner.logger)
            runner.call_hook('after_guard_row', row=alert.to_row())

    def _tell_margins(self, runner: Runner) -> None:
        """Log once how far the run is from its limits."""
        if self._has_told_margins or self._last is None:
            return
        self._has_told_margins = True
        line = margins(self._last, self._monitor)
        if line:
            say(f'Iter {self._last.iter}: {line}', logging.INFO, runner.logger)

    def _goes_on(self, runner: Runner, num_more: int = 0) -> bool:
        """Whether a window goes on, also that of a wrapper without a guard.

        Args:
            runner: The runner.
            num_more: Number of iterations after those that the runner counts.
        """
        # The last window of a run may be shorter.
        done = runner.iter + num_more
        is_last = done >= runner.max_iters
        is_counted = not is_last and done % longest_window(runner) != 0
        return is_counted or any(g.is_open for g in self._guards.values())
