from dataclasses import dataclass
from typing import Optional, Tuple

from .findings import collect_findings
from .recommendations import Step, next_steps, quoted, remedied, tell_culprit
from .summary import Summary

__all__ = ['Assessment', 'judge']


@dataclass(frozen=True)
class Assessment:
    """How a run is, and what to do about it.

    Attributes:
        is_healthy: Nothing was rejected but what a run gets over.
        sentence: All of it in one.
        since: Iteration at which it became sick; None if it is not.
        reasons: Why it is sick, the gravest first.
        steps: What to do, the most helpful first.
    """

    is_healthy: bool
    sentence: str
    since: Optional[int] = None
    reasons: Tuple[str, ...] = ()
    steps: Tuple[Step, ...] = ()


def judge(summary: Summary) -> Assessment:
    """Is this run healthy? A pure function.

    Sick is a run

    - that halted, and was not resumed since;
    - whose last updates were all rejected, 3 or more;
    - in which an audit found bad weights, buffers, averages or moments;
    - that went back to an earlier state;
    - that rejected 5 updates or more in its last 200 iterations;
    - of which one parameter, or where none can be blamed one cause (spikes
      excepted), spoilt 5 updates or more, and one in 1,000 since the first of
      them, with no remedy after the last;
    - that rejected 10 updates or more, and one in 100 since the first.

    For none of these count routine overflows of the loss scale and updates
    that were committed: clipped spikes, windows without some micro-batches.
    """
    troubles = collect_findings(summary)
    if not troubles:
        steps = next_steps(summary)
        story = tell_healthy(summary)
        if steps:
            story += f'; next: {steps[0].text}'
        return Assessment(True, story, steps=steps)
    first = troubles[0]
    steps = next_steps(summary, first)
    parts = (
        f'sick since iteration {first.since:,}: {first.what}',
        tell_culprit(summary, first),
        f'next: {steps[0].text}',
    )
    return Assessment(
        is_healthy=False,
        sentence='; '.join(filter(None, parts)),
        since=first.since,
        reasons=tuple(trouble.what for trouble in troubles),
        steps=steps,
    )


def tell_healthy(summary: Summary) -> str:
    num_routine, told = summary.num_routine, []
    if num_routine:
        plural = 's' if num_routine > 1 else ''
        last = max(summary.iters[cause][-1] for cause in summary.routine)
        told.append(
            f'{num_routine:,} routine overflow{plural} in the first {last:,} '
            'iterations'
        )
    if summary.num_skipped:
        told.append(tell_skips(summary))
    num_committed = summary.actions.get('step', 0)
    if num_committed:
        plural = 's' if num_committed > 1 else ''
        told.append(
            f'{num_committed:,} update{plural} committed with spikes clipped '
            'or micro-batches left out'
        )
    if not told:
        return f'healthy: {summary.last_iter:,} iterations, none rejected'
    return f'healthy: {"; ".join(told)}'


def tell_skips(summary: Summary) -> str:
    causes = summary.anomalies
    num, last = summary.num_skipped, summary.episodes[-1].last
    if num == 1:
        story = f'1 update rejected at iteration {last:,} ({causes[0]})'
    else:
        story = (
            f'{num:,} updates rejected now and then ({", ".join(causes)}), '
            f'the last at iteration {last:,}'
        )
    cures = summary.others.get('remedy', [])
    if any((row.get('iter') or 0) >= last for row in cures):
        names = quoted(remedied(summary))
        return f'{story}, cured since: {names} in float32'
    went_on = last < summary.last_iter
    return f'{story}; training went on' if went_on else story
