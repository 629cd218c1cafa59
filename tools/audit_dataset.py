r"""Find bad data before training, by loading a dataset with its pipeline.

Each sample is loaded once. A sample is bad if a check in --checks or in a
ValidateSample of the pipeline fails, or if the pipeline raises. OUT then
holds report.json, bad_samples.txt for mmnanguard.ExcludeSamples, and the
distribution of each --key. An audit that was killed continues where it was;
under torchrun each rank does its share.
Exit status: 0 if all samples are good, 1 if one is bad, 2 for a wrong command
line or config, 70 with a traceback if the audit itself fails.

Example:
    python tools/audit_dataset.py configs/digits/plain_fp32.py --key inputs \
        --checks Finite "dict(type='Range', key='inputs', min=0, max=16)"
"""

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from mmengine.config import DictAction
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils.dl_utils import set_multi_processing
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from mmnanguard.datasets.audit_report import Report
    from mmnanguard.datasets.audited_dataset import AuditedDataset, Row

ROOT = Path(__file__).resolve().parents[1]
STATISTICS = (
    *('count', 'mean', 'std', 'min', 'quartiles', 'max'),
    *('nonfinite', 'missing'),
)
MAX_SHOWN = 20  # bad samples; report.json has them all


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
    parser.add_argument(
        'config', help="a file, or a project's own such as mmpretrain::x/y.py"
    )
    parser.add_argument(
        '--checks',
        nargs='*',
        default=['Finite'],
        help="a name, or dict(type='Range', key='img', min=0); "
        'default: Finite',
    )
    parser.add_argument(
        '--key',
        nargs='+',
        default=[],
        help='report its distribution: a field or an expression over fields',
    )
    parser.add_argument(
        '--dataloader', choices=['train', 'val', 'test'], default='train'
    )
    parser.add_argument(
        '--num-workers', type=int, help="default: the config's"
    )
    parser.add_argument(
        '--out', type=Path, help='default: audit_<dataloader> in the work dir'
    )
    parser.add_argument(
        '--strict',
        action='store_true',
        help='no effect: the exit status is 1 anyway if something is bad',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of random transforms'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE'
    )
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def check_args(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    """Evaluate --checks, and refuse values that cannot work."""
    try:
        args.checks = list(map(read_check, args.checks))
    except Exception as error:  # whatever the evaluation raises
        parser.error(f'--checks: {error}')
    for name in ('seed', 'num_workers'):
        if (getattr(args, name) or 0) < 0:
            parser.error(f'--{name.replace("_", "-")} must be 0 or more')


def read_check(text: str) -> object:
    """Return a check's config, or its name if the text is no expression.

    Evaluating the text is safe: the user writes the command line.
    """
    if '(' not in text and '{' not in text:
        return text
    # Users also write the literals of JSON.
    return eval(text, dict(true=True, false=False, null=None))


def load(
    args: argparse.Namespace,
) -> Tuple['AuditedDataset', Dict[str, object]]:
    """Return the dataset, and the settings that its rows depend on.

    Fills in the defaults of ``args.out`` and ``args.num_workers``, which
    come from the config.
    """
    from mmnanguard.core import GuardConfigError
    from mmnanguard.datasets.audited_dataset import AuditedDataset
    from mmnanguard.datasets.fields import check_key
    from mmnanguard.datasets.find_problems import build_checks
    from mmnanguard.read_config import read_given_config

    cfg = read_given_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    stem = Path(args.config.split('::')[-1]).stem
    work_dir = Path(cfg.get('work_dir') or f'work_dirs/{stem}')
    args.out = args.out or work_dir / f'audit_{args.dataloader}'
    name = f'{args.dataloader}_dataloader'
    loader = cfg.get(name)
    if not loader:
        raise GuardConfigError(f'{args.config} has no {name}.')
    # Before the dataset is built, which may take minutes.
    for key in args.key:
        check_key(key)
    checks = []
    if args.checks:
        checks = build_checks(args.checks, '--checks')
    # A training run does this as well: it sets the start method of worker
    # processes, and the number of their OpenCV threads.
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(loader.dataset)
    dataset = AuditedDataset(dataset, checks, args.key, args.seed)
    # An audit that was killed is continued only if these are unchanged.
    facts = dict(
        dataset=str(loader.dataset),
        checks=args.checks,
        keys=args.key,
        seed=args.seed,
        num_samples=len(dataset),
    )
    if args.num_workers is None:
        args.num_workers = loader.get('num_workers', 0)
    return dataset, facts


def walk(
    dataset: 'AuditedDataset',
    facts: Dict[str, object],
    args: argparse.Namespace,
) -> bool:
    """Audit this rank's share; return whether the whole dataset is done."""
    from mmnanguard.datasets.dataset_audit import audit

    # Set by torchrun. No process group is needed: ranks share a folder.
    rank = int(os.environ.get('RANK', 0))
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    progress = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        auto_refresh=False,  # no thread: worker processes may be forked
        disable=rank > 0,
    )
    num_bad = 0
    share = len(range(rank, len(dataset), world_size))
    task = progress.add_task('0 bad', total=share)

    def advance(rows: List['Row']) -> None:
        """Show that some more rows are done."""
        nonlocal num_bad
        num_bad += sum(bool(row['problems']) for row in rows)
        progress.update(
            task, advance=len(rows), description=f'{num_bad} bad', refresh=True
        )

    with progress:
        return audit(
            dataset,
            facts,
            args.out,
            args.num_workers,
            rank,
            world_size,
            on_rows=advance,
        )


def show(report: 'Report', out: Path) -> None:
    """Print the tables of bad samples and of distributions."""
    from mmnanguard._support.escape import escape
    from mmnanguard._tables import print_table

    if report['bad']:
        rows = []
        for row in report['bad'][:MAX_SHOWN]:
            start = [str(row['index']), row['name']]
            for problem in row['problems']:
                rows.append([*start, f'{problem["check"]}: {problem["text"]}'])
                # The sample is named once, before its first problem.
                start = ['', '']
        print_table(('index', 'sample', 'what'), rows)
    if report['distributions']:
        keys = report['distributions'].items()
        rows = []
        for name in STATISTICS:
            rows.append([name, *(as_text(values[name]) for _, values in keys)])
        print_table(('', *(key for key, _ in keys)), rows)
    if report['num_dropped']:
        print(f'{report["num_dropped"]} dropped by the pipeline')
    print(
        f'{report["num_bad"]} of {report["num_samples"]} samples are bad; '
        f'see {escape(out / "report.json")} and '
        f'{escape(out / "bad_samples.txt")}'
    )


def as_text(value: object) -> str:
    """Format a number or a list of numbers for a table."""
    if isinstance(value, list):
        return ' '.join(map(as_text, value))
    if isinstance(value, float):
        return f'{value:.4g}'
    return str(value)


def run(args: argparse.Namespace) -> int:
    """Audit the dataset and write the report; return the exit status."""
    from mmnanguard._tool_parser import complain
    from mmnanguard.core import NanGuardError
    from mmnanguard.core.launch import Launch
    from mmnanguard.datasets.audit_report import audit_report, write_report
    from mmnanguard.datasets.dataset_audit import read_rows

    try:
        dataset, facts = load(args)
    except (NanGuardError, OSError):
        raise
    except Exception as error:
        # A dataset may raise anything over its config, or be at fault itself.
        traceback.print_exc()
        return complain(error)
    if not walk(dataset, facts, args):
        print('this share is done; the last one to end writes the report')
        return 0
    rows = read_rows(args.out, facts)
    # The rows do not depend on the config's path: a file has several paths.
    report = audit_report(rows, args.key, dict(config=args.config, **facts))
    write_report(report, args.out)
    show(report, args.out)
    # With other options, the config alone may be another dataset.
    if report['bad'] and args.dataloader == 'train' and not args.cfg_options:
        listed = str(Path(args.out, 'bad_samples.txt'))
        options = ('--guard', 'full', '--exclude', listed)
        print(f'Train without them:\n{Launch(args.config).train(*options)}')
    return int(report['num_bad'] > 0)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)
    from mmnanguard._tool_parser import run_tool

    return run_tool(run, args)


if __name__ == '__main__':
    sys.exit(main())
