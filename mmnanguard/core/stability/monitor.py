"""The memory of the monitor, and the alerts that it tells."""

import math
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..rows.alert_row import DIVERGING, SCALE_FALLS, AlertRow
from ..rules.divergence import Divergence, LossLevel
from ..rules.recent_commits import Commit
from .alerts import alert_of, is_news
from .headroom import MAX_POINTS, Point
from .learning import read_losses
from .limits import StabilityLimits
from .rules import WATCHED, Past, read_sample
from .sample import Sample
from .start import Start

__all__ = ['Judgement', 'Monitor']

# A level that has been watched is watched again once it has grown.
GROWN = 1.25
# Iterations at the start in which the loss scale finds its value.
NUM_SETTLING = 20
SCALE_WINDOW = 100
WINDOW = 32  # losses in a median
# The smallest number above 0 in float32 is 2**-149.
LEAST_BITS = 149
NUM_GRADS = 5  # samples, as gradients jump from one to the next
# Samples in a row inside the limit that end an alert.
NUM_CLEAR = 5


@dataclass(frozen=True)
class Monitor:
    """The memory of the monitor, from sample to sample.

    Attributes:
        trends: The last points of each module: iteration and headroom.
        operands: The last points of each module's smallest operand: the
            iteration, and the bits above the smallest number of float32.
        over: Number of samples in a row that were over the limit, by rule;
            below 0 the number of samples inside it.
        open_alerts: The open alert of each rule.
        watched: The highest level that was watched, by rule.
        watch_until: The iteration, exclusive, until which samples are dense.
        grads: The largest gradients of the last samples, without the loss
            scale.
        num_samples: Number of samples.
        start: The numbers that the run began with.
        scales: The loss scale after each of its last moves, with the
            iteration, from the one that was in force 100 iterations ago.
        levels: The level of the losses of each optimizer.
        updates: The number of the last update that the level knows.
        diverging: The optimizer whose losses the open alert of divergence is
            about; '' if it is not known.
    """

    trends: Mapping[str, Tuple[Point, ...]] = field(default_factory=dict)
    operands: Mapping[str, Tuple[Point, ...]] = field(default_factory=dict)
    over: Mapping[str, int] = field(default_factory=dict)
    open_alerts: Mapping[str, AlertRow] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)
    watch_until: int = 0
    grads: Tuple[float, ...] = ()
    num_samples: int = 0
    start: Start = field(default_factory=Start)
    scales: Tuple[Tuple[int, float], ...] = ()
    levels: Mapping[str, LossLevel] = field(default_factory=dict)
    updates: Mapping[str, int] = field(default_factory=dict)
    diverging: str = ''

    def after(
        self,
        sample: Sample,
        limits: StabilityLimits,
        interval: int,
        losses: Optional[Mapping[str, Sequence[float]]] = None,
    ) -> 'Judgement':
        """Return the memory after a sample, and the alerts to tell.

        Args:
            sample: The sample.
            limits: The limits of the rules.
            interval: Number of iterations between two samples.
            losses: The losses of the last committed updates of each
                optimizer, oldest first; None if they are not known.
        """
        trends = extended(self.trends, sample)
        operands = dict(self.operands)
        for name, operand in sample.operands.items():
            point = (
                sample.iter,
                max(math.log2(operand.value) + LEAST_BITS, 0.0),
            )
            operands[name] = (*operands.get(name, ()), point)[-MAX_POINTS:]
        finite = {}
        for name, of_name in (losses or {}).items():
            known = list(filter(math.isfinite, of_name))
            # Some wrappers see no losses.
            if known:
                finite[name] = known
        start = self.start.after(sample, finite)
        levels = []
        for name, known in finite.items():
            levels.append(read_losses(known, start.losses.get(name)))
        past = Past(trends, operands, levels, start)
        readings = read_sample(sample, past, limits)
        over, watched = dict(self.over), dict(self.watched)
        open_alerts = dict(self.open_alerts)
        alerts: List[AlertRow] = []
        watch_until = self.watch_until
        for rule, reading in readings.items():
            is_over = reading.level >= 1
            if is_over:
                over[rule] = max(over.get(rule, 0), 0) + 1
            else:
                over[rule] = min(over.get(rule, 0), 0) - 1
            open_alert = open_alerts.get(rule)
            if is_over and over[rule] >= reading.num_needed:
                alert = alert_of(reading, sample)
                if open_alert is None or is_news(alert, open_alert):
                    alerts.append(alert)
                    open_alerts[rule] = alert
            elif open_alert is not None and over[rule] <= -NUM_CLEAR:
                alerts.append(open_alert.replace(cleared=sample.iter))
                del open_alerts[rule]
            is_near = reading.level >= WATCHED
            if is_near and reading.level > GROWN * watched.get(rule, 0.0):
                watched[rule] = reading.level
                watch_until = sample.iter + interval
        # A loss scale that has found its place falls no more.
        falls = open_alerts.get(SCALE_FALLS)
        last_move = self.scales[-1][0] if self.scales else 0
        if falls is not None and sample.iter - last_move >= SCALE_WINDOW:
            alerts.append(falls.replace(cleared=sample.iter))
            del open_alerts[SCALE_FALLS]
        grads = self.grads
        # An infinite one was too large for the loss scale of its moment.
        if sample.scaled_grad and math.isfinite(sample.scaled_grad):
            grad = sample.scaled_grad / sample.loss_scale
            grads = (*grads, grad)[-NUM_GRADS:]
        after = replace(
            self,
            trends=trends,
            operands=operands,
            over=over,
            open_alerts=open_alerts,
            watched=watched,
            watch_until=watch_until,
            grads=grads,
            num_samples=self.num_samples + 1,
            start=start,
        )
        return Judgement(after, alerts)

    def after_scale(
        self, iteration: int, scale: float, limits: StabilityLimits
    ) -> 'Judgement':
        """Return the memory after a reading of the loss scale.

        Args:
            iteration: The iteration that begins, from 1.
            scale: Its loss scale.
            limits: The limits of the rules.
        """
        if self.scales and self.scales[-1][1] == scale:
            return Judgement(self, [])
        # The first scale is a guess, which falls until it fits.
        if iteration <= NUM_SETTLING:
            return Judgement(replace(self, scales=((iteration, scale),)), [])
        scales = [*self.scales, (iteration, scale)]
        while len(scales) > 1 and scales[1][0] <= iteration - SCALE_WINDOW:
            scales.pop(0)
        after = replace(self, scales=tuple(scales))
        # A scale that grows and falls again has found its place.
        num_falls, lowest = 0, scales[0][1]
        for _, now in scales:
            num_falls += now < lowest
            lowest = min(lowest, now)
        needed = limits.scale_falls
        if (
            needed is None
            or num_falls < needed
            or SCALE_FALLS in self.open_alerts
        ):
            return Judgement(after, [])
        alert = AlertRow(
            iter=iteration,
            rule=SCALE_FALLS,
            value=num_falls,
            limit=needed,
            loss_scale=scale,
        )
        return Judgement(after.opened(alert), [alert])

    def after_commit(
        self,
        iteration: int,
        name: str,
        commits: Sequence[Commit],
        limits: StabilityLimits,
    ) -> 'Judgement':
        """Return the memory after the last committed updates of an optimizer.

        Args:
            iteration: The iteration of the last update, from 1.
            name: The name of the optimizer.
            commits: Its last commits, oldest first. Those that were counted
                already are left out.
            limits: The limits of the rules.
        """
        share, seen = limits.diverging, self.updates.get(name, 0)
        new = [commit for commit in commits if commit.update > seen]
        if share is None or not new:
            return Judgement(self, [])
        commit = new[-1]
        level = self.levels.get(name) or LossLevel(WINDOW)
        losses = [commit.loss for commit in new]
        level = level.after(*filter(math.isfinite, losses))
        rise = Divergence(WINDOW, share).find_risen(level, new)
        after = replace(
            self,
            levels={**self.levels, name: level},
            updates={**self.updates, name: commit.update},
        )
        open_alert = self.open_alerts.get(DIVERGING)
        # The median is at its lowest: what was lost has been learnt again.
        has_recovered = level.age == 0 and self.diverging in (name, '')
        if open_alert is not None and has_recovered:
            cleared = open_alert.replace(cleared=iteration)
            return Judgement(after.closed(DIVERGING), [cleared])
        if rise is None or open_alert is not None:
            return Judgement(after, [])
        alert = AlertRow(
            iter=iteration,
            rule=DIVERGING,
            value=rise.value,
            limit=rise.limit,
            lr=commit.lr,
            advice='lr',
        )
        after = replace(after.opened(alert), diverging=name)
        return Judgement(after, [alert])

    def after_rollback(self) -> 'Monitor':
        """Return the memory of a run that went back to an earlier state.

        The trends of before do not go on. What began with the run, and the
        open alerts, stay.
        """
        return replace(
            Monitor(),
            open_alerts=self.open_alerts,
            num_samples=self.num_samples,
            start=self.start,
            updates=self.updates,
            diverging=self.diverging,
        )

    def opened(self, alert: AlertRow) -> 'Monitor':
        """Return the memory with an alert that is open."""
        return replace(
            self, open_alerts={**self.open_alerts, alert.rule: alert}
        )

    def closed(self, rule: str) -> 'Monitor':
        """Return the memory without the open alert of a rule."""
        open_alerts = dict(self.open_alerts)
        del open_alerts[rule]
        return replace(self, open_alerts=open_alerts)

    def with_told(self, alert: AlertRow) -> 'Monitor':
        """Return the memory with an alert that has its id now."""
        if alert.rule not in self.open_alerts:
            return self
        return self.opened(alert)

    def to_dict(self) -> Dict[str, Any]:
        """Return the memory in builtins only."""
        return dict(
            vars(self),
            open_alerts={
                rule: alert.to_row()
                for rule, alert in self.open_alerts.items()
            },
            start=vars(self.start),
            levels={name: vars(level) for name, level in self.levels.items()},
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> 'Monitor':
        """Return the saved memory."""
        open_alerts = {
            rule: AlertRow.from_row(row)
            for rule, row in saved['open_alerts'].items()
        }
        levels = {
            name: LossLevel.from_dict(level, WINDOW)
            for name, level in saved['levels'].items()
        }
        read = dict(
            open_alerts=open_alerts,
            levels=levels,
            start=Start.from_dict(saved['start']),
        )
        return cls(**{**saved, **read})


class Judgement(NamedTuple):
    """The outcome of a sample.

    Attributes:
        monitor: The memory after the sample.
        alerts: The alerts to tell, and those that are over.
    """

    monitor: Monitor
    alerts: List[AlertRow]


def extended(
    trends: Mapping[str, Tuple[Point, ...]], sample: Sample
) -> Dict[str, Tuple[Point, ...]]:
    """Return the trends with the points of a sample.

    A trend goes on as long as the limit of the dtype stays: outputs that run
    in float32 now have another headroom.
    """
    after = {}
    for module, largest in sample.outputs.items():
        before = trends.get(module, ())
        # That of a bad batch is no part of a trend.
        if math.isinf(largest.value):
            after[module] = before
            continue
        bits = max(largest.bits, 0.0)
        if before and abs(before[-1][1] - bits) > 60:
            before = ()
        after[module] = (*before, (sample.iter, bits))[-MAX_POINTS:]
    return after
