"""Print how public configs fare in a migration, and under the guards.

FOLDER has a sub-folder for each project: a checkout, or its configs alone.
Configs of 1.x are migrated, and the runs that they describe are compared;
configs of 2.x are migrated, and get each guard. The exit status is 0 if at
least 97 % of the configs that can be read load after the migration, no
migration crashes, and no config differs without a note.

Example:
    python tests/public_configs/score.py ~/checkouts --most 50
    python tests/public_configs/score.py ~/checkouts mmdet mmseg --show
"""

import argparse
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2)]
from public_configs.guards import GUARDS, REFUSED, problems_of  # noqa: E402
from public_configs.trees import (  # noqa: E402
    Outcome,
    count,
    is_new,
    leaves,
    migrate_leaf,
    quiet,
    read,
)

Outcomes = Dict[Path, Outcome]
Problems = Dict[Tuple[Path, str], List[str]]
LOADS = 0.97


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print a row for each project, and return the exit status."""
    args = parse_args(argv)
    quiet()
    options = ['--flatten'] if args.flatten else []
    totals: Dict[str, Counter] = defaultdict(Counter)
    print(row('project', ['', *count([], 0), *count_guards({})]))
    for project in sorted(path for path in args.folder.iterdir()):
        if not project.is_dir():
            continue
        if args.names and project.name not in args.names:
            continue
        old, new, num_unreadable = sort_leaves(project, args.most)
        for version, chosen in (('1.x', old), ('2.x', new)):
            if not chosen:
                continue
            outcomes = migrate_all(chosen, options)
            problems: Problems = {}
            if version == '2.x':
                problems = guard_all(new)
            numbers = count(list(outcomes.values()), num_unreadable)
            numbers.update(count_guards(problems))
            totals[version].update(numbers)
            print(row(project.name, [version, *numbers.values()]), flush=True)
            if args.show:
                show(project, outcomes, problems)
    is_good = True
    for version, total in totals.items():
        print(row('all', [version, *total.values()]))
        is_good &= not (total['crashed'] or total['silent'])
        is_good &= total['load'] >= LOADS * total['leaves']
    return int(not is_good)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('names', nargs='*', help='projects; all if left out')
    parser.add_argument(
        '--most', type=int, help='leaves of a project, evenly chosen'
    )
    parser.add_argument(
        '--flatten', action='store_true', help='migrate to a single file each'
    )
    parser.add_argument(
        '--show', action='store_true', help='print what differs, with a leaf'
    )
    # Names may follow the options.
    return parser.parse_intermixed_args(argv)


def sort_leaves(
    project: Path, most: Optional[int]
) -> Tuple[List[Path], List[Path], int]:
    """Return the leaves of 1.x, those of 2.x and how many cannot be read."""
    chosen = list(leaves(project))
    if most:
        chosen = chosen[:: max(1, -(-len(chosen) // most))]
    old, new, num_unreadable = [], [], 0
    for leaf in chosen:
        try:
            cfg = read(leaf)
        except Exception:
            # A config is a program: it may raise any exception.
            num_unreadable += 1
            continue
        (new if is_new(cfg) else old).append(leaf)
    return old, new, num_unreadable


def migrate_all(chosen: Iterable[Path], options: Sequence[str]) -> Outcomes:
    """Migrate each leaf with its bases into a folder of its own."""
    outcomes = {}
    for leaf in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[leaf] = migrate_leaf(leaf, Path(folder) / 'new', *options)
    return outcomes


def guard_all(new: Iterable[Path]) -> Problems:
    """Return what is wrong with each leaf of 2.x under each guard."""
    problems = {}
    for leaf in new:
        for guard in GUARDS:
            problems[leaf, guard] = problems_of(leaf, guard)
    return problems


def count_guards(problems: Problems) -> Dict[str, int]:
    """Return how many leaves train, and how many are right per guard."""
    counts = dict.fromkeys(['trains', *GUARDS], 0)
    for (_, guard), texts in problems.items():
        counts[guard] += not texts
        if guard == GUARDS[0]:
            # A leaf without a wrapper is refused: it does not train.
            counts['trains'] += REFUSED not in texts
    return counts


def row(name: str, cells: Iterable[object]) -> str:
    """Return a row of the table."""
    return ' '.join([f'{name:38}', *(f'{cell!s:>10}' for cell in cells)])


def show(project: Path, outcomes: Outcomes, problems: Problems) -> None:
    """Print the kinds of problems of a project, each with an example."""
    kinds: Dict[str, List[str]] = defaultdict(list)
    for leaf, outcome in outcomes.items():
        name = str(leaf.relative_to(project))
        if not outcome.loads:
            text = outcome.error or outcome.text
            error = ' '.join(re.sub(r'\S*/\S+', 'PATH', text).split())
            kinds[f'{outcome.kind}: {error:.160}'].append(name)
        for difference in outcome.differences:
            verb = 'told' if difference.is_told else 'SILENT'
            old, new = difference.old, difference.new
            example = f'{name}: {old!s:.150} -> {new!s:.150}'
            kinds[f'{verb}: {difference.fact}'].append(example)
    for (leaf, guard), texts in problems.items():
        for text in set(texts) - {REFUSED}:
            example = f'{leaf.relative_to(project)} ({guard})'
            kinds[f'guard: {text}'].append(example)
    for kind, examples in sorted(kinds.items()):
        print(f'    {len(examples):4} {kind}; {examples[0]}')


if __name__ == '__main__':
    sys.exit(main())
