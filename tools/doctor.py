"""Look at a config before training: what is guarded, and what is in the way.

Looks at the installed versions, the optimizers, hooks and code that the config
names, the data's folders, and the checkpoint that training will begin with.
Nothing is trained, unless --drill is given. Takes the options of train; a
config that is not guarded is looked at as with --guard full. The last line is
the command that starts training, or says what to mend first.
Exit status: 0 if training can begin, 1 if something is to be mended first, 2
for a wrong command line or a config that cannot be read.

Example:
    python tools/doctor.py configs/digits/plain_fp32.py --audit 50
"""

import contextlib
import importlib
import io
import logging
import os
import shutil
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence

if TYPE_CHECKING:
    import argparse

    from mmengine.config import Config

    from mmnanguard.doctor.finding import Finding

FOUND, WRONG = 1, 2  # exit statuses
GUARD = 'full'
# Options of this tool that train does not have, with their number of values.
OWN_OPTIONS = {'--drill': 0, '--audit': 1, '--launcher': 1}


class Report:
    """The findings so far, which are printed group by group."""

    def __init__(self) -> None:
        self.findings: List[Finding] = []

    def add(self, title: str, findings: Sequence['Finding']) -> None:
        """Print a group of findings, unless it is empty."""
        from mmnanguard.doctor.finding import lines_of

        if findings:
            print(*lines_of(title, findings), '', sep='\n', flush=True)
        self.findings += findings

    def end(self, command: str = '') -> int:
        """Print the last lines; return the exit status."""
        failures = [item for item in self.findings if item.level == 'FAIL']
        if not failures:
            print('Start training:')
            print(command)
            return 0
        first = failures[0]
        count = len(failures)
        print(f'{count} to mend; training should not begin yet.')
        if first.command:
            print('Mend first, with this command:')
            print(first.command)
        else:
            # The whole text stands above.
            print(textwrap.shorten(f'Mend first: {first.text}', 160))
        return FOUND


def parse_args(argv: Optional[Sequence[str]]) -> 'argparse.Namespace':
    """Parse the command line."""
    import train

    parser = train.make_parser(__doc__)
    parser.allow_abbrev = False
    parser.add_argument(
        '--drill',
        action='store_true',
        help='train for 12 updates, three times, with and without planted '
        'faults',
    )
    parser.add_argument(
        '--audit',
        type=int,
        metavar='N',
        help='load and check the first N training samples',
    )
    args = parser.parse_args(argv)
    train.check_args(parser, args)
    if args.audit is not None and args.audit < 1:
        parser.error('--audit must be 1 or more')
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    if argv is None:
        argv = sys.argv[1:]
    report = Report()
    stack = connect()
    # With a wrong command line, versions that fit are of no interest.
    args = None
    if not stack_fails(stack):
        args = parse_args(argv)
    report.add('versions', stack)
    if args is None:
        return report.end()
    with warnings.catch_warnings():
        # Of MMEngine and of projects, about themselves.
        warnings.simplefilter('ignore')
        return examine(args, argv, report)


def connect() -> List['Finding']:
    """Look at the versions, and import what this process has left out."""
    from mmnanguard.doctor.versions import explain_stack, look_at_versions

    findings = look_at_versions()
    if stack_fails(findings):
        return findings
    try:
        import mmnanguard

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if not hasattr(mmnanguard, 'apply_guard'):
                importlib.reload(mmnanguard)
    except Exception as error:  # whatever the import of a package raises
        findings.append(explain_stack(error))
    return findings


def stack_fails(findings: Sequence['Finding']) -> bool:
    """Whether a finding is in the way of everything else."""
    return any(finding.level == 'FAIL' for finding in findings)


def examine(
    args: 'argparse.Namespace', argv: Sequence[str], report: Report
) -> int:
    """Look at a config; return the exit status."""
    import train

    from mmnanguard.core import GuardConfigError
    from mmnanguard.doctor.classes import collected_logs, find_classes
    from mmnanguard.doctor.finding import fail, warn
    from mmnanguard.doctor.reading import (
        UnreadableConfigError,
        explain_error,
        look_at_style,
        try_reading,
    )
    from mmnanguard.doctor.wrappers import is_guarded

    # Projects are found from the folder in which training will start.
    sys.path[:0] = [os.getcwd(), str(train.ROOT)]
    extra: List[str] = []
    notes: List[Finding] = []
    try:
        with collected_logs() as records:
            cfg = try_reading(args.config)
            style = look_at_style(args.config, cfg)
            if style:
                report.add('config', style)
                return report.end()
            use_scope(cfg)
            guarded = any(map(is_guarded, find_classes(cfg)['wrapper']))
            if not guarded and not args.guard and not args.amp:
                args.guard = GUARD
                extra = ['--guard', GUARD]
                notes.append(
                    warn(
                        f'The config is not guarded; below, --guard {GUARD} '
                        'is added, which keeps its precision.'
                    )
                )
            records.clear()
            cfg = train.load_config(args)
    except UnreadableConfigError as error:
        report.add('config', [error.finding])
        report.end()
        return WRONG
    except GuardConfigError as error:
        report.add('config', [*notes, fail(str(error))])
        return report.end()
    except Exception as error:  # a lazy type, which is imported late
        report.add('config', [explain_error(args.config, error)])
        return report.end()
    for record in records:
        if record.levelno >= logging.WARNING:
            notes.append(warn(record.getMessage()))
    resumes = look(cfg, args, report, notes)
    if resumes and not args.resume:
        extra.append('--resume')
    return report.end(command_of(args, argv, extra))


def look(
    cfg: 'Config',
    args: 'argparse.Namespace',
    report: Report,
    notes: List['Finding'],
) -> bool:
    """Print the findings on a config; return whether to resume."""
    from mmnanguard.doctor.checkpoints import look_at_beginning
    from mmnanguard.doctor.classes import (
        collected_logs,
        find_classes,
        look_at_classes,
    )
    from mmnanguard.doctor.data import audit_first, look_at_data
    from mmnanguard.doctor.hooks import (
        look_at_clashes,
        look_at_guard_hooks,
        look_at_leftovers,
    )
    from mmnanguard.doctor.own_code import look_at_own_code
    from mmnanguard.doctor.wrappers import look_at_frozen, look_at_wrappers

    with collected_logs():
        classes = find_classes(cfg)
        hooks = classes['hook']
        report.add(
            'config',
            [
                *notes,
                *look_at_classes(args.config, cfg, classes),
                *look_at_leftovers(cfg),
            ],
        )
        report.add(
            'what is guarded',
            [
                *look_at_wrappers(
                    cfg, classes['wrapper'], classes['optimizer'], hooks
                ),
                *look_at_frozen(cfg),
                *look_at_own_code(classes),
            ],
        )
        report.add(
            'hooks', [*look_at_guard_hooks(hooks), *look_at_clashes(hooks)]
        )
        report.add('data', look_at_data(cfg))
        beginning = look_at_beginning(cfg)
        report.add('checkpoint', beginning.findings)
        if args.audit:
            report.add('audit', audit_first(args.config, cfg, args.audit))
    if args.drill:
        report.add('drill', drill(cfg))
    return beginning.resumes


def drill(cfg: 'Config') -> List['Finding']:
    """Run a short fire drill; return its result."""
    import fire_drill

    from mmnanguard.doctor.finding import fail, fine, warn
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    if cfg.get('strategy') or cfg.get('model_wrapper_cfg'):
        return [
            warn(
                'not run: it trains in one process, and the config has a '
                'strategy or a wrapper of the model for several.'
            )
        ]
    allow_mmengine_checkpoints()
    for key, hook in list(cfg.default_hooks.items()):
        # Faults of the config may lie at the end of a long run.
        if isinstance(hook, dict) and 'faults' in hook:
            del cfg.default_hooks[key]
    cfg.update(resume=False, launcher='none')
    print('(the drill: three runs of 12 updates)', file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix='drill_'))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(
        output
    ):
        result = fire_drill.drill(cfg, folder)
    if not result['passed']:
        reasons = '; '.join(result['failures'])
        return [
            fail(
                f'{reasons}.', f'The logs are in {folder}:', last_error(folder)
            )
        ]
    shutil.rmtree(folder)
    acts = []
    for fault in result['faults']:
        acts.append(
            f'{fault["site"]} at iteration {fault["iter"]}: {fault["action"]}'
        )
    plain = result['runs'][-1]
    without = 'crashes'
    if not plain['exit']:
        without = f'ends with {len(plain["bad_weights"] or ())} bad tensors'
    return [
        fine(f'NaN in {", ".join(acts)}; all weights finite'),
        fine(f'the same without the guard {without}'),
    ]


def last_error(folder: Path) -> str:
    """Return the last line of the console of the run that crashed."""
    last = ''
    for log in sorted(folder.glob('*/console.log')):
        lines = log.read_text(errors='replace').strip().splitlines()
        if lines and 'Error' in lines[-1]:
            last = f'{log.parent.name}: {lines[-1]}'
    return last


def use_scope(cfg: 'Config') -> None:
    """Let registries search in the project of the config, as a run does."""
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get('default_scope') or 'mmengine')


def command_of(
    args: 'argparse.Namespace', argv: Sequence[str], extra: Sequence[str]
) -> str:
    """Return the command that trains with the options of this command line.

    Args:
        args: The parsed options.
        argv: The command line.
        extra: Options to add.
    """
    import torch

    from mmnanguard.core.launch import Launch

    words: List[Any] = []
    rest = iter(argv)
    for word in rest:
        name, _, value = word.partition('=')
        if name not in OWN_OPTIONS:
            words.append(word)
        elif OWN_OPTIONS[name] and not value:
            next(rest)
    words.remove(args.config)
    ranks = max(1, torch.cuda.device_count())
    launch = Launch(
        args.config, launcher=args.launcher, ranks=ranks, ranks_per_node=ranks
    )
    return launch.train(*words, *extra)


if __name__ == '__main__':
    sys.exit(main())
