"""Print how many runs that go bad were warned of, and how long ahead.

Example:
    python tests/stability/score.py
    python tests/stability/score.py lr-cnn growth-mlp

A run takes a few seconds; all of them some ten minutes.
"""

import argparse
import importlib
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Dict, List, Optional, Sequence

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]
from stability.families import FAMILIES, HEALTHY, UNPREDICTABLE  # noqa: E402
from stability.runs import Outcome, headroom_alerts, run, silence  # noqa: E402

MMPRETRAIN = Path(sys.prefix) / 'mmpretrain'
Outcomes = Dict[str, Outcome]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run families, print a row for each, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', help='runs; all if left out')
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(FAMILIES))
    if unknown:
        parser.error(f'no such run: {", ".join(unknown)}')
    silence()
    find_mmpretrain()
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
        print(f'\n{title}: {summary(chosen)}')
    print(f'\nall: {summary(outcomes)}')
    return 0


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


def summary(outcomes: Outcomes) -> str:
    """Return the score of some runs."""
    by_kind: Dict[str, List[Outcome]] = defaultdict(list)
    tame = []
    for name, outcome in outcomes.items():
        kind = FAMILIES[name].kind
        # A run that was meant to go bad and did not is counted apart.
        if kind not in (HEALTHY, UNPREDICTABLE) and outcome.bad is None:
            tame.append(name)
        else:
            by_kind[kind].append(outcome)
    healthy = by_kind.pop(HEALTHY, [])
    by_kind.pop(UNPREDICTABLE, None)
    bad = list(chain.from_iterable(by_kind.values()))
    num_warned = sum(o.is_warned for o in bad)
    leads = [o.lead for o in bad if o.lead is not None]
    false = [o for o in healthy if o.alerts]
    named = [o for o in bad if headroom_alerts(o)]
    right = [
        o for o in named if headroom_alerts(o)[0]['module'] == o.overflowed
    ]
    counted, close = [], []
    for outcome in named:
        alert = headroom_alerts(outcome)[0]
        if alert['left']:
            true = outcome.overflow - alert['iter']
            counted.append(outcome)
            if 0.5 <= alert['left'] / true <= 2:
                close.append(outcome)
    return (
        f'warned in {num_warned} of {len(bad)} runs that went bad, '
        f'{median(leads or [0]):g} iterations ahead (median); alerts in '
        f'{len(false)} of {len(healthy)} healthy runs; the module that '
        f'overflows first named in {len(right)} of {len(named)}; the '
        f'countdown within a factor of 2 in {len(close)} of {len(counted)}; '
        f'meant to go bad and did not: {", ".join(tame) or "none"}'
    )


if __name__ == '__main__':
    sys.exit(main())
