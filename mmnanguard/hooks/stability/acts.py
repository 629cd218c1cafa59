"""Changes of the run that alerts advise, as far as the user allows them."""

import logging
import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmengine.dist import all_gather_object
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.alert_row import (
    ATTENTION_LOGITS,
    HEADROOM,
    UNDERFLOW,
    UPDATE_RATIO,
    AlertRow,
)
from mmnanguard.core.rows.remedy_row import (
    FP32,
    LR,
    SCALE,
    RemedyRow,
    line_of_lr,
)
from mmnanguard.core.stability.limits import StabilityLimits
from mmnanguard.core.stability.loss_scales import fitting_scale
from mmnanguard.core.stability.monitor import Monitor
from mmnanguard.core.stability.rules import headroom
from mmnanguard.core.stability.sample import LIMITS, Sample
from mmnanguard.numerics.stability.failsafe import Failsafe
from mmnanguard.numerics.stability.half_probe import HalfProbe

from .._shared.find_guards import find_guards
from .._shared.launch import lr_factor_of
from .._shared.roles import ModuleCaster
from .measured import common_scalers

__all__ = ['Acts']

ALLOWED = (FP32, SCALE, LR)
# The rules that advise a lower learning rate on the evidence of samples.
OF_RATE = (UPDATE_RATIO, ATTENTION_LOGITS)
LR_FACTOR = 0.5
# Samples over the limit after which the learning rate is lowered once more.
NUM_WAITING = 3
# Modules whose numbers are smaller by less than this factor go together.
NEAR = 4.0
# Bits below the limit of float16 in which gradients make the loss scale fall:
# they jump by more than outputs do.
GRAD_ROOM = 8.0


class Acts:
    """Puts the advice of alerts into effect, alike on all ranks.

    Args:
        act: The kinds of advice to put into effect.
        max_actions: Number of changes in the run, resumes included.

    Attributes:
        is_watching: Whether samples have to be dense, since modules that were
            put in float32 have outputs that are too large for float16. The
            modules before them grow as well.

    Raises:
        GuardConfigError: If an argument is not allowed.
    """

    def __init__(self, act: Sequence[str], max_actions: int) -> None:
        where = 'StabilityMonitorHook.{}'.format
        is_list = isinstance(act, (list, tuple, set))
        check_value(
            is_list and all(kind in ALLOWED for kind in act),
            where('act'),
            act,
            "a list of any of 'fp32', 'scale' and 'lr', such as ['fp32']",
        )
        check_value(
            is_count(max_actions, least=1),
            where('max_actions'),
            max_actions,
            'an integer above 0',
        )
        self._act = tuple(act)
        self._max_actions = max_actions
        self._num_done = 0
        # Ends with the sample of the next window.
        self._probe: Optional[HalfProbe] = None
        self._modes = ExitStack()
        self._half_limit: Optional[float] = None
        # By rule: number of samples over the limit since the last act, and
        # the number of that moment.
        self._waiting: Dict[str, int] = {}
        self._acted_at: Dict[str, float] = {}
        self._scales: Dict[str, float] = {}
        self._in_fp32: List[str] = []
        self.is_watching = False

    def prepare(self, runner: Runner) -> None:
        """Let the hook that runs modules in float32 resume them."""
        caster = find_caster(runner)
        if FP32 in self._act and caster is not None:
            caster.keep_requests()

    def check(self, runner: Runner) -> None:
        """Refuse a run without the parts that act.

        Raises:
            GuardConfigError: If a part is missing.
        """
        if FP32 in self._act and find_caster(runner) is None:
            raise GuardConfigError(
                "StabilityMonitorHook: act=('fp32',) needs Fp32ModulesHook, "
                'which runs the modules in float32: add default_hooks=dict('
                "fp32=dict(type='mmnanguard.Fp32ModulesHook'))."
            )
        for kind in sorted({SCALE, LR}.intersection(self._act)):
            if not find_guards(runner):
                raise GuardConfigError(
                    f'StabilityMonitorHook: act=({kind!r},) needs a guarded '
                    'optimizer wrapper: set optim_wrapper.type to '
                    "'mmnanguard.NanGuardOptimWrapper' or "
                    "'mmnanguard.NanGuardAmpOptimWrapper'."
                )

    @property
    def wants_sample(self) -> bool:
        """Whether the next window has to be sampled."""
        return self._half_limit is not None

    def begin(
        self, modules: Mapping[str, nn.Module], failsafe: Failsafe
    ) -> None:
        """Begin to measure the window that a sample begins with."""
        if self._half_limit is not None:
            self._probe = HalfProbe(modules, self._half_limit, failsafe)
            self._modes.enter_context(self._probe)

    def drop(self) -> None:
        """End the measurement without a result."""
        self._probe = None
        self._modes.close()

    def end(self, runner: Runner, monitor: Monitor) -> None:
        """Put the modules in float32 that were measured; collective."""
        probe = self._probe
        if probe is None:
            return
        self.drop()
        largest: Dict[str, float] = {}
        for of_rank in all_gather_object(probe.take()):
            largest.update(of_rank)
        alert = monitor.open_alerts.get(HEADROOM)
        # After a bad batch, which measures nothing, the next window does.
        if largest or alert is None:
            self._half_limit = None
        if largest and alert is not None:
            self._request(runner, sorted(largest), alert.id)

    def _request(
        self, runner: Runner, names: Sequence[str], row_id: str
    ) -> None:
        """Run modules in float32 from the next iteration on."""
        caster = find_caster(runner)
        new = [name for name in names if name not in self._in_fp32]
        if caster is not None and new:
            self._num_done += 1
            self._in_fp32 += new
            caster.request(new, row_id)

    def announce(self, alert: AlertRow) -> AlertRow:
        """Return a new alert with what will be done about it."""
        has_act = alert.rule in (HEADROOM, UNDERFLOW, *OF_RATE)
        if has_act and alert.advice in self._act and self._has_left():
            return alert.replace(acted=alert.advice)
        return alert

    def after_sample(
        self,
        runner: Runner,
        sample: Sample,
        monitor: Monitor,
        limits: StabilityLimits,
    ) -> None:
        """Act on the alerts that are open after a sample.

        An alert is told once; here each sample counts that is over a limit.
        """
        alerts = monitor.open_alerts
        self.is_watching = any(
            sample.outputs[name].value > LIMITS['float16']
            for name in sample.outputs.keys() & self._in_fp32
        )
        if FP32 in self._act and HEADROOM in alerts and self._has_left():
            limit = half_limit(sample, monitor, limits)
            self._half_limit = limit or self._half_limit
        is_low = UNDERFLOW in alerts and is_over(monitor, UNDERFLOW)
        if SCALE in self._act and is_low and self._has_left():
            self._raise_scale(runner, sample, alerts[UNDERFLOW].id)
        if LR in self._act:
            self._after_sample_of_rate(runner, sample, monitor)
        if {FP32, SCALE}.intersection(self._act):
            self._lower_scale(runner, sample)
        if FP32 in self._act and limits.headroom is not None:
            self._relieve(runner, sample, monitor, limits.headroom)

    def _after_sample_of_rate(
        self, runner: Runner, sample: Sample, monitor: Monitor
    ) -> None:
        values = {
            UPDATE_RATIO: sample.update_ratio,
            ATTENTION_LOGITS: max(sample.logits.values(), default=None),
        }
        for rule in OF_RATE:
            value, alert = values[rule], monitor.open_alerts.get(rule)
            if value is None:
                continue
            if alert is None or not is_over(monitor, rule):
                self._waiting[rule] = 0
                continue
            num_waiting = self._waiting.get(rule, 0) + 1
            self._waiting[rule] = num_waiting
            before = self._acted_at.get(alert.id)
            # Large logits stay for long at any rate; only their growth says
            # that the rate is still too high.
            is_due = before is None or (
                num_waiting >= NUM_WAITING
                and (rule == UPDATE_RATIO or value > before)
            )
            if is_due and self._has_left():
                self._acted_at[alert.id] = value
                self._waiting = {}
                self._lower_rates(runner, alert.id)
                return

    def _lower_rates(self, runner: Runner, row_id: str) -> None:
        """Multiply the learning rates of all optimizers, outside schedules."""
        ceilings: List[float] = []
        for guard in find_guards(runner).values():
            guard.state = guard.state.with_lower_rates(LR_FACTOR)
            ceilings.append(guard.state.lr_ceiling)
        factor = min(ceilings)
        config = line_of_lr(factor * lr_factor_of(runner))
        self._report(runner, RemedyRow(row_id, LR, '', config, factor))

    def _raise_scale(
        self, runner: Runner, sample: Sample, row_id: str
    ) -> None:
        """Raise the loss scale at which gradients have vanished."""
        if not sample.scaled_grad:
            return
        value = fitting_scale(sample.scaled_grad / sample.loss_scale)
        for name, guard in find_guards(runner).items():
            scaler = guard.scaler
            before = scaler.get_scale()
            if not scaler.is_enabled() or before != sample.loss_scale:
                continue
            scaler.raise_to(value)
            after = scaler.get_scale()
            if after <= before:
                continue
            self._scales[name] = after
            # Nothing is known about a larger scale, as after a growth.
            guard.state = replace(guard.state, commits_since_growth=0)
            config = f'optim_wrapper=dict(loss_scale={after:g})'
            self._report(runner, RemedyRow(row_id, SCALE, '', config, after))

    def _lower_scale(self, runner: Runner, sample: Sample) -> None:
        """Lower a loss scale at which gradients will soon overflow.

        Any scale between the limits trains alike, so this is no remedy.
        """
        grad = sample.scaled_grad or 0.0
        if grad * 2**GRAD_ROOM <= LIMITS['float16'] or math.isinf(grad):
            return
        value = fitting_scale(grad / sample.loss_scale)
        for scaler in common_scalers(find_guards(runner)):
            before = scaler.get_scale()
            scaler.jump(min(value, before))
            after = scaler.get_scale()
            if after == before:
                continue
            line = (
                f'Iter {sample.iter}: the loss scale goes from {before:g} to '
                f"{after:g}, since a gradient in '{sample.steepest}' is at "
                f"{grad:.2g} of float16's 65504"
            )
            say(escape(line), logging.INFO, runner.logger)

    def _relieve(
        self, runner: Runner, sample: Sample, monitor: Monitor, room: float
    ) -> None:
        """Put modules in float32 whose gradients stay large at any scale.

        Args:
            runner: The runner.
            sample: The sample.
            monitor: The memory of the monitor.
            room: The bits below the limit of float16 that have to be left.
        """
        scalers = common_scalers(find_guards(runner))
        if not scalers or not self._has_left():
            return
        scale = scalers[0].get_scale()
        # A lower one helps as well, and costs nothing.
        if scale > scalers[0].min_scale:
            return
        most = LIMITS['float16'] / 2**room
        names, is_due = [], False
        for name, grad in sample.grads.items():
            left = grad / sample.loss_scale * scale
            is_due = is_due or most < left < math.inf
            if left > most / NEAR:
                names.append(name)
        if is_due:
            alert = monitor.open_alerts.get(HEADROOM, AlertRow())
            self._request(runner, names, alert.id)

    def _report(self, runner: Runner, remedy: RemedyRow) -> None:
        """Log a change, and hand its row to all hooks."""
        self._num_done += 1
        say(remedy.line(), logging.WARNING, runner.logger)
        runner.call_hook('after_guard_row', row=remedy.to_row())

    def _has_left(self) -> bool:
        return self._num_done < self._max_actions

    def to_dict(self) -> Dict[str, Any]:
        """Return what a resumed run needs, in builtins only."""
        return {
            'num_done': self._num_done,
            'half_limit': self._half_limit,
            'waiting': dict(self._waiting),
            'acted_at': dict(self._acted_at),
            'scales': dict(self._scales),
            'in_fp32': list(self._in_fp32),
            'is_watching': self.is_watching,
        }

    def load(self, runner: Runner, saved: Mapping[str, Any]) -> None:
        """Load what a checkpoint has, before the loss scale is loaded."""
        self._num_done = saved['num_done']
        if FP32 in self._act:
            self._half_limit = saved['half_limit']
            self._in_fp32 = list(saved['in_fp32'])
            self.is_watching = saved['is_watching']
        self._waiting = dict(saved['waiting'])
        self._acted_at = dict(saved['acted_at'])
        if SCALE not in self._act:
            return
        self._scales = dict(saved['scales'])
        guards = find_guards(runner)
        for name, scale in self._scales.items():
            # A number in the config would bound the scale of the checkpoint.
            if name in guards:
                guards[name].scaler.raise_to(scale)


def find_caster(runner: Runner) -> Optional[ModuleCaster]:
    """Return the hook that runs modules in float32, if there is one."""
    for hook in runner.hooks:
        if isinstance(hook, ModuleCaster):
            return hook
    return None


def is_over(monitor: Monitor, rule: str) -> bool:
    """Whether the last sample was over the limit of a rule."""
    return monitor.over.get(rule, 0) > 0


def half_limit(
    sample: Sample, monitor: Monitor, limits: StabilityLimits
) -> Optional[float]:
    """Return the number from which on modules go together; None if none do.

    That is a quarter of the limit of the rule, or of what the module of the
    alert has: all that makes such numbers, or gets them, would overflow next.
    """
    half = {
        name: largest
        for name, largest in sample.outputs.items()
        if largest.dtype == 'float16'
    }
    reading = headroom(
        replace(sample, outputs=half), monitor.trends, limits.headroom
    )
    if reading is None or reading.level < 1 or limits.headroom is None:
        return None
    most = LIMITS['float16'] / 2**limits.headroom
    return min(float(reading.facts['value']), most) / NEAR
