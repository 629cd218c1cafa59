"""Print how many runs that go bad were warned of, and how long ahead.

Example:
    python tests/stability/score.py
    python tests/stability/score.py lr-cnn growth-mlp
    python tests/stability/score.py --act fp32

With --act, healthy runs and those whose float16 outputs grow are run without
and with the monitor's acting, and the updates lost and the ends are printed.
A run takes a few seconds; all of them some ten minutes. The exit status is 1
if what is asked of the whole list does not hold.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Dict, List, NamedTuple, Optional, Sequence

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]
from stability.families import FAMILIES, GROWTH, HEALTHY, UNPREDICTABLE  # noqa: E402
from stability.runs import Outcome, headroom_alerts, run, silence  # noqa: E402

MMPRETRAIN = Path(sys.prefix) / 'mmpretrain'
Outcomes = Dict[str, Outcome]
FP32 = dict(fp32=dict(type='mmnanguard.Fp32ModulesHook'))
OTHER_SEEDS = (201, 202, 203, 204)
# Causes that are no overflow.
OTHER = ('divergence',)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run families, print a row for each, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', help='runs; all if left out')
    parser.add_argument(
        '--act', action='append', choices=['fp32', 'scale', 'lr']
    )
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(FAMILIES))
    if unknown:
        parser.error(f'no such run: {", ".join(unknown)}')
    silence()
    find_mmpretrain()
    if args.act:
        return compare_acting(args.names, args.act)
    outcomes: Outcomes = {}
    for name in args.names or list(FAMILIES):
        outcomes[name] = run(name)
        print(row_of(name, outcomes[name]), flush=True)
    for title, is_seen in (('seen', True), ('unseen', False)):
        chosen = {
            name: outcome
            for name, outcome in outcomes.items()
            if FAMILIES[name].is_seen is is_seen
        }
        print(f'\n{title}: {score(chosen)}')
    whole = score(outcomes)
    print(f'\nall: {whole}')
    if args.names:
        return 0
    for gate, holds in whole.gates().items():
        print(f'{"yes" if holds else "NO":4} {gate}')
    return int(not all(whole.gates().values()))


def compare_acting(names: Sequence[str], act: Sequence[str]) -> int:
    """Print what runs lose without and with acting; return the status.

    The status is 1 if a growing run still loses updates to overflows, or a
    healthy one loses more updates or ends worse by 2 % of right answers.
    """
    if not names:
        kinds = {name: family.kind for name, family in FAMILIES.items()}
        names = [n for n, kind in kinds.items() if kind in (HEALTHY, GROWTH)]
    acts = dict(monitor=dict(act=list(act)), hooks=FP32)
    num_wrong = 0
    for name in names:
        plain, acting = [run(name)], [run(name, **acts)]
        is_healthy = FAMILIES[name].kind == HEALTHY
        if is_healthy and acting[0].loss != plain[0].loss:
            # Another rounding is another run: more of them are compared.
            for seed in OTHER_SEEDS:
                plain.append(run(name, seed=seed))
                acting.append(run(name, seed=seed, **acts))
        before, after = map(ends_of, (plain, acting))
        is_wrong = after.lost > (before.lost if is_healthy else 0)
        if is_healthy:
            is_wrong |= after.accuracy < before.accuracy - 0.02
        num_wrong += is_wrong
        words = ', WRONG' if is_wrong else ''
        print(f'{name:22} {before} -> {after}{words}', flush=True)
    print(f'{len(names) - num_wrong} of {len(names)} as they should be')
    return int(num_wrong > 0)


class Ends(NamedTuple):
    """The end of a run, or of several with other seeds.

    Attributes:
        accuracy: The median share of right answers.
        loss: The median of the losses.
        lost: Number of updates that were lost to overflows, of all.
    """

    accuracy: float
    loss: float
    lost: int

    def __str__(self) -> str:
        return f'{self.accuracy:.1%} loss {self.loss:.3g} lost {self.lost}'


def ends_of(outcomes: Sequence[Outcome]) -> Ends:
    """Return how some runs end."""
    return Ends(
        median(outcome.accuracy for outcome in outcomes),
        median(outcome.loss for outcome in outcomes),
        sum(map(num_overflows, outcomes)),
    )


def num_overflows(outcome: Outcome) -> int:
    """Return the number of updates that were lost to overflows."""
    return sum(n for cause, n in outcome.lost.items() if cause not in OTHER)


def find_mmpretrain() -> None:
    """Let mmpretrain and torchvision be imported, as `make test` has them."""
    if MMPRETRAIN.is_dir():
        sys.path.append(str(MMPRETRAIN))
        importlib.import_module('mmpretrain_env.sitecustomize')


def row_of(name: str, outcome: Outcome) -> str:
    """Return the row of a run."""
    alerts = [a for a in outcome.alerts if a['cleared'] is None]
    first = '-'
    if alerts:
        first = f'{alerts[0]["rule"]} at {alerts[0]["iter"]}'
    bad = f'{outcome.how} at {outcome.bad}' if outcome.bad else 'fine'
    lead = '-' if outcome.lead is None else str(outcome.lead)
    parts = [
        f'{name:22}',
        f'{FAMILIES[name].kind:26}',
        f'{outcome.accuracy:6.1%}',
        f'{bad:28}',
        f'{first:26}',
        f'lead {lead}',
    ]
    countdown = countdown_of(outcome)
    if countdown:
        parts.append(countdown)
    return ' '.join(parts)


def countdown_of(outcome: Outcome) -> str:
    """Return the countdown as it was told, and as it was."""
    alerts = headroom_alerts(outcome)
    if not alerts:
        return ''
    left = alerts[0]['left']
    true = outcome.overflow - alerts[0]['iter']
    words = 'no countdown' if left is None else f'told {left:.0f}'
    return (
        f"{words}, true {true}, '{alerts[0]['module']}' ({outcome.overflowed})"
    )


@dataclass
class Score:
    """The numbers of some runs.

    Attributes:
        bad: The runs that went bad in a way that can be seen coming.
        healthy: The healthy runs.
        named: The runs with a countdown before their outputs overflow.
        tame: Names of runs that were meant to go bad and did not.
        false: Names of healthy runs with an alert.
    """

    bad: List[Outcome] = field(default_factory=list)
    healthy: List[Outcome] = field(default_factory=list)
    named: List[Outcome] = field(default_factory=list)
    tame: List[str] = field(default_factory=list)
    false: List[str] = field(default_factory=list)

    @property
    def num_warned(self) -> int:
        """Number of bad runs that were warned of."""
        return sum(outcome.is_warned for outcome in self.bad)

    @property
    def lead(self) -> float:
        """Median number of iterations from the first alert to the trouble."""
        leads = [o.lead for o in self.bad if o.lead is not None]
        return median(leads or [0])

    @property
    def num_right(self) -> int:
        """Number of countdowns that name the module that overflows first."""
        return sum(
            headroom_alerts(o)[0]['module'] == o.overflowed for o in self.named
        )

    @property
    def num_close(self) -> int:
        """Number of countdowns that are within a factor of 2."""
        num = 0
        for outcome in self.named:
            alert = headroom_alerts(outcome)[0]
            true = outcome.overflow - alert['iter']
            num += 0.5 <= (alert['left'] or 0) / true <= 2
        return num

    def __str__(self) -> str:
        num_named = len(self.named)
        return (
            f'warned in {self.num_warned} of {len(self.bad)} runs that went '
            f'bad, {self.lead:g} iterations ahead (median); alerts in '
            f'{len(self.false)} of {len(self.healthy)} healthy runs; the '
            f'module that overflows first named in {self.num_right} of '
            f'{num_named}; the countdown within a factor of 2 in '
            f'{self.num_close} of {num_named}; meant to go bad and did not: '
            f'{", ".join(self.tame) or "none"}'
        )

    def gates(self) -> Dict[str, bool]:
        """Return what is asked of the whole list, and whether it holds."""
        return {
            '30 bad and 30 healthy runs': min(len(self.bad), len(self.healthy))
            >= 30,
            'warned in 85 %': self.num_warned >= 0.85 * len(self.bad),
            '50 iterations ahead': self.lead >= 50,
            'alerts in at most 10 % of healthy runs': len(self.false)
            <= 0.1 * len(self.healthy),
            "none in mmpretrain's": not any('mm-' in n for n in self.false),
            'the right module in 90 %': self.num_right
            >= 0.9 * len(self.named),
            'the right countdown in 70 %': self.num_close
            >= 0.7 * len(self.named),
        }


def score(outcomes: Outcomes) -> Score:
    """Return the score of some runs."""
    result = Score()
    for name, outcome in outcomes.items():
        kind = FAMILIES[name].kind
        if kind == UNPREDICTABLE:
            continue
        if kind == HEALTHY:
            result.healthy.append(outcome)
            if outcome.alerts:
                result.false.append(name)
        elif outcome.bad is None:
            result.tame.append(name)
        else:
            result.bad.append(outcome)
            if headroom_alerts(outcome):
                result.named.append(outcome)
    return result


if __name__ == '__main__':
    sys.exit(main())
