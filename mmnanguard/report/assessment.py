"""The assessment of a run: healthy or sick, why, and what to do."""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from mmnanguard._support.escape import escape

from .alerts import alerts_of, describe_warning
from .badge import CRASHED, HEALTHY, NOT_GUARDED, RECOVERED, UNCLEAR
from .culprit_clause import describe_culprit, describe_update
from .findings import Finding, collect_findings
from .recommendations import Step, join_quoted, next_steps, remedied_modules
from .recovery import count_clean_iters, was_treated
from .steps_for_end import explosion_step, steps_for_end
from .summary import Summary

__all__ = ['Assessment', 'judge']


@dataclass(frozen=True)
class Assessment:
    """The health of a run, and the next steps.

    The lines of an assessment are badge, headline, cause, warning and action.
    ``sentence`` holds them all, for a log.

    Attributes:
        is_healthy: Whether the run needs no help: it is well, or it went on
            well after trouble that is over.
        sentence: The whole assessment in one sentence.
        since: Iteration at which the trouble began; None if there is no
            finding.
        reasons: The reasons why the run is or was sick, the gravest first.
        steps: The recommended steps, the most helpful first.
        badge: 'Healthy', 'Recovered', 'Unclear', 'Sick', 'Crashed' or
            'Not guarded'.
        headline: What happened, as a clause.
        cause: The culprit or the error as a clause; '' if none is known.
        warning: The alerts that came before the trouble, as a clause; ''
            without any.
    """

    is_healthy: bool
    sentence: str
    since: Optional[int] = None
    reasons: Tuple[str, ...] = ()
    steps: Tuple[Step, ...] = ()
    badge: str = HEALTHY
    headline: str = ''
    cause: str = ''
    warning: str = ''

    @property
    def action(self) -> str:
        """The most helpful step as a clause; '' if there is none."""
        return self.steps[0].text if self.steps else ''


def judge(summary: Summary) -> Assessment:
    """Assess a run by its summary. A pure function.

    A run is sick if

    - it halted, and was not resumed since;
    - an exception or Ctrl-C ended it, or its process is gone without a row
      that says how it ended;
    - its last updates were all rejected, 3 or more;
    - an audit found bad weights, buffers, averages or moments;
    - it went back to an earlier state;
    - it rejected 5 updates or more in its last 200 iterations;
    - one parameter is blamed for 5 rejected updates or more, and for at least
      one in 1,000 updates since the first blame, and no remedy was applied
      after the last blame. If no parameter can be blamed, rejected updates
      count by cause instead, except spikes;
    - it rejected 10 updates or more, and at least one in 100 since the first;
    - the loss has exploded and stayed so, although it is finite;
    - not all of its updates were guarded, so that nothing says whether they
      were good.

    A run has recovered if all that was found passes (rejected updates,
    rollbacks, audits with a later rollback or resume), its last 200
    iterations or the last half of a shorter run were clean, as were five
    times the usual gap between two rejected updates, and its loss is not
    above the one before the trouble.

    Routine overflows of the loss scale do not count, and neither do updates
    that were committed: clipped spikes, windows without some micro-batches.
    """
    findings = collect_findings(summary)
    if not findings:
        return assess_without_findings(summary)
    # The sentence names only the gravest finding and the most helpful step,
    # so that it stays one line in a log; the report lists the others below.
    gravest = findings[0]
    badge, headline = gravest.badge, headline_of(gravest)
    opening = f'sick since iteration {gravest.since:,}: {gravest.clause}'
    num_clean = count_clean_iters(summary, findings)
    if num_clean is not None:
        badge = RECOVERED
        headline += f'; {num_clean:,} iterations went well since'
        opening = (
            f'recovered from trouble since iteration {gravest.since:,}: '
            f'{headline}'
        )
    cause = ''
    if gravest.cause:
        cause = describe_culprit(summary, gravest)
        steps = next_steps(summary, gravest)
    else:
        # No bad update made the run sick: it ended, exploded, or was not
        # guarded.
        opening = gravest.clause
        steps = steps_for_end(summary)
    # What ended a run otherwise, such as an exception, had no warning.
    warning = ''
    if gravest.cause or summary.log_rise is not None:
        warning = describe_warning(summary, gravest.since, gravest.cause)
    clauses = (opening, cause, warning, f'next: {steps[0].text}')
    return Assessment(
        is_healthy=badge == RECOVERED,
        sentence=escape('; '.join(filter(None, clauses))),
        since=gravest.since,
        reasons=tuple(escape(finding.clause) for finding in findings),
        steps=escape_steps(steps),
        badge=badge,
        headline=escape(headline),
        cause=escape(cause_of(summary, gravest, cause)),
        warning=escape(warning),
    )


def headline_of(finding: Finding) -> str:
    """Return the clause of a finding without what its badge says."""
    clause = finding.clause
    if finding.badge == NOT_GUARDED:
        return clause.partition(': ')[2]
    if finding.badge == CRASHED and ' by ' in clause:
        # The cause follows in a line of its own.
        clause = clause.partition(' by ')[0]
    return clause


def cause_of(summary: Summary, finding: Finding, culprit: str) -> str:
    """Return the clause on a cause; '' if nothing is known of it.

    Args:
        summary: The summary of the run.
        finding: The gravest finding.
        culprit: The clause on the culprit; '' if none is known.
    """
    end = summary.end
    if finding.badge == CRASHED and end is not None:
        return '; '.join(filter(None, (end.error, end.bad_numbers())))
    label, _, rest = culprit.partition(': ')
    if label == 'culprit':
        return rest
    # A parameter that is blamed often is no reason.
    clauses = (describe_update(summary, finding), culprit)
    return '; '.join(filter(None, clauses))


def assess_without_findings(summary: Summary) -> Assessment:
    """Return the assessment of a run that no finding calls sick."""
    badge, label = HEALTHY, 'healthy: '
    if summary.log_rise is not None:
        badge, label = UNCLEAR, ''
    elif was_treated(summary):
        badge, label = RECOVERED, 'recovered: '
    headline = describe_healthy_run(summary)
    steps = next_steps(summary)
    if summary.log_rise is not None:
        steps = (explosion_step(summary.log_rise), *steps)
    cause = ''
    if summary.num_skipped:
        first = summary.episodes[0].first
        finding = Finding(first, summary.anomalies[0], headline)
        culprit = describe_culprit(summary, finding)
        cause = cause_of(summary, finding, culprit)
    sentence = label + headline
    # Even a healthy run may have a sample that is worth leaving out.
    if steps:
        sentence += f'; next: {steps[0].text}'
    return Assessment(
        is_healthy=True,
        sentence=escape(sentence),
        steps=escape_steps(steps),
        badge=badge,
        headline=escape(headline),
        cause=escape(cause),
    )


def escape_steps(steps: Sequence[Step]) -> Tuple[Step, ...]:
    """Return steps that can be shown, whatever names they have."""
    # A command has its escapes already, unless it is the text of a row.
    return tuple(Step(*map(escape, step)) for step in steps)


def describe_healthy_run(summary: Summary) -> str:
    """Return the clauses on a run without findings."""
    clauses: List[str] = []
    if summary.num_routine:
        last = max(summary.iters[cause][-1] for cause in summary.routine)
        length = max(last - summary.first_iter + 1, 1)
        clauses.append(
            f'{count_of(summary.num_routine, "routine overflow")} in the '
            f'first {length:,} iterations'
        )
    if summary.num_skipped:
        clauses.append(describe_rejections(summary))
    # 'step' is the action of updates that were committed after a repair.
    # An update without a repair has no row, so it does not count here.
    num_committed = summary.actions.get('step', 0)
    if num_committed:
        clauses.append(
            f'{count_of(num_committed, "update")} committed with spikes '
            'clipped or micro-batches left out'
        )
    if not clauses:
        clauses.append(f'{summary.num_iters:,} iterations, none rejected')
    clauses += describe_alerts(summary)
    for row in summary.bypasses:
        clauses.append(f'but at iteration {row.iter or 0:,} {row.finding}')
    if summary.log_rise is None:
        return '; '.join(clauses)
    return (
        f'not sick, but the loss ended {summary.log_rise.words}, which is '
        f'right only if it is made to do so: {"; ".join(clauses)}'
    )


def describe_alerts(summary: Summary) -> List[str]:
    """Return the clause on the alerts of a healthy run, if there are any."""
    alerts = alerts_of(summary)
    if not alerts:
        return []
    first, num = alerts[0], len(alerts)
    times = f' {num:,} times, first' * (num > 1)
    return [
        f'warned{times} at iteration {first.record.iter:,} '
        f'({first.subject}), {first.outcome}'
    ]


def describe_rejections(summary: Summary) -> str:
    """Return the clause on the few rejected updates of a healthy run."""
    causes = summary.anomalies
    num, last = summary.num_skipped, summary.episodes[-1].last
    if num == 1:
        clause = f'1 update rejected at iteration {last:,} ({causes[0]})'
    else:
        clause = (
            f'{num:,} updates rejected now and then ({", ".join(causes)}), '
            f'the last at iteration {last:,}'
        )
    # A remedy cured the run only if no update was rejected after it.
    names = join_quoted(remedied_modules(summary))
    for row in summary.others.get('remedy', ()):
        if (row.get('iter') or 0) >= last and names:
            return f'{clause}, cured since: {names} in float32'
    if last < summary.last_iter:
        return f'{clause}; training went on'
    return clause


def count_of(num: int, noun: str) -> str:
    """Return the number with the noun, in the plural if it is above 1."""
    return f'{num:,} {noun}{"s" * (num > 1)}'
