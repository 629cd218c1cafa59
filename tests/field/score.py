"""Print how many scenarios are right, and what is wrong with the others.

Example:
    python tests/field/score.py
    python tests/field/score.py NoPositives CorruptImage
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import List, Optional, Sequence

import torch

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]
from field.all_scenarios import SCENARIOS  # noqa: E402
from field.sides import SIDES, Run, run_all  # noqa: E402
from field.verdict import what_is_worse, what_is_wrong  # noqa: E402


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run scenarios, print a row for each, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', help='scenarios; all if left out')
    parser.add_argument(
        '--text', action='store_true', help='print what the user reads'
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = args.names or list(SCENARIOS)
    unknown = sorted(set(names) - set(SCENARIOS))
    if unknown:
        parser.error(f'no such scenario: {", ".join(unknown)}')
    print(row('scenario', 'source', [*SIDES, 'causes', 'verdict']))
    num_right = 0
    for name in names:
        scenario, runs = SCENARIOS[name], run_all(name)
        problems = what_is_worse(scenario, runs)
        problems += what_is_wrong(scenario, runs)
        num_right += not problems
        ends = [describe_end(runs[side]) for side in SIDES]
        verdict = 'wrong' if problems else 'right'
        causes = count_causes(runs['full'])
        print(row(name, scenario.source, [*ends, causes, verdict]))
        for problem in problems:
            print(f'    {problem}')
        if args.text:
            for side in SIDES[1:]:
                print(f'--- {side}\n{runs[side].text}')
    print(f'{num_right} of {len(names)} field scenarios right')
    return int(num_right < len(names))


def row(name: str, source: str, cells: List[str]) -> str:
    """Return a row of the table."""
    return f'{name:24} {source:42} ' + ' '.join(f'{x:>10}' for x in cells)


def describe_end(run: Run) -> str:
    """Return the final loss, or how the run ended without one."""
    if run.is_halted:
        return 'halted'
    if run.error is not None:
        return 'crashed'
    return f'{run.end:.4g}'


def count_causes(run: Run) -> str:
    """Return the causes of rejected updates with their numbers."""
    rows = [row for row in run.rows if row['kind'] == 'update']
    causes = Counter(row['cause'] for row in rows if row['action'] != 'step')
    parts = [f'{cause} x{num}' for cause, num in causes.most_common()]
    return ', '.join(parts) or '-'


if __name__ == '__main__':
    sys.exit(main())
