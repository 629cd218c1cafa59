"""Train any mm config, guarded.

The exit status is 0 after the last iteration, 3 if the guard has halted
training, 2 for a wrong command line or config, and 1 or another number for a
crash.

Example:
    python tools/train.py configs/digits/plain_fp32.py --guard fp16
"""

import argparse
import ast
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

if TYPE_CHECKING:
    from mmnanguard._tool_parser import ToolParser

ROOT = Path(__file__).resolve().parents[1]


class OptionAction(DictAction):
    """MMEngine's action, with values such as ``dict(max_norm=35)``.

    Messages and reports name config lines of this form. MMEngine's own action
    makes strings of them.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if not val.startswith('dict('):
            return DictAction._parse_iterable(val)
        try:
            return read_dict(ast.parse(val, mode='eval').body)
        except (SyntaxError, ValueError) as error:
            # The parser ends with this message.
            message = f'--cfg-options: {val} is no dict of constants'
            raise argparse.ArgumentError(None, message) from error


def merge_options(cfg: Any, options: Dict[str, Any]) -> None:
    """Merge options into a config, where a dict may replace None.

    MMEngine refuses ``clip_grad=dict(max_norm=35)`` if ``clip_grad`` is None.
    """
    for key, value in options.items():
        *parents, name = key.split('.')
        owner: Any = cfg._cfg_dict
        for parent in parents:
            owner = owner.get(parent) if isinstance(owner, dict) else None
        is_none = isinstance(owner, dict) and owner.get(name, value) is None
        if is_none and isinstance(value, dict):
            owner[name] = {}
    cfg.merge_from_dict(options)


def read_dict(node: ast.AST) -> Any:
    """Return the value of an expression of constants and ``dict(...)``.

    Raises:
        ValueError: If there is anything else in it.
    """
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if getattr(node.func, 'id', '') != 'dict' or node.args:
        raise ValueError('a call of another function')
    values: Dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError('a **dict')
        values[keyword.arg] = read_dict(keyword.value)
    return values


def make_parser(description: Optional[str]) -> 'ToolParser':
    """Return the parser of the options, which other tools take as well."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(description)
    parser.add_argument(
        'config', help="a file, or a project's own such as mmpretrain::x/y.py"
    )
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='a checkpoint; alone: the newest one in the work dir, or the '
        'last clean one if that is bad',
    )
    parser.add_argument(
        '--guard',
        metavar='NAME|FILE',
        help='fp32, bf16, fp16, full, or the path of an overlay',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision, guarded: the same as --guard fp16',
    )
    parser.add_argument(
        '--lr-factor',
        type=float,
        metavar='FACTOR',
        help='multiply all learning rates of the config, also where they come '
        'from the checkpoint of a resume',
    )
    parser.add_argument(
        '--exclude',
        metavar='FILE',
        help='leave out the samples of a list: a line holds an index, a name, '
        'or both with a tab between, as in bad_samples.txt of audit_dataset',
    )
    parser.add_argument('--auto-scale-lr', action='store_true')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionAction, metavar='KEY=VALUE'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def check_args(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    """Refuse options that contradict each other; set MMEngine's variable."""
    if args.amp and args.guard not in (None, 'fp16'):
        parser.error(
            f'--amp is --guard fp16; it cannot go with --guard {args.guard}'
        )
    # MMEngine reads the variable; older launchers pass only the argument.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def load_config(args: argparse.Namespace) -> Config:
    """Return the config, with guard and options of the command line.

    Raises:
        GuardConfigError: If the config cannot be read or guarded.
    """
    from mmnanguard import apply_guard
    from mmnanguard.core import GuardConfigError
    from mmnanguard.hooks import LrFactorHook
    from mmnanguard.read_config import read_given_config

    cfg = read_given_config(args.config)
    guard = args.guard
    if args.amp:
        guard = 'fp16'
    options = args.cfg_options or {}
    if guard:
        # Before the guard, which DeepSpeed's strategy decides.
        for key, value in options.items():
            if key.split('.')[0] == 'strategy':
                cfg.merge_from_dict({key: value})
        cfg = apply_guard(cfg, guard)
    # After the guard, whose keys an option may change.
    merge_options(cfg, options)
    if args.lr_factor is not None:
        # Checked now: after loading a checkpoint it would be late.
        LrFactorHook(args.lr_factor)
        cfg.setdefault('default_hooks', {})
        cfg.default_hooks.lr_factor = dict(
            type='mmnanguard.LrFactorHook', factor=args.lr_factor
        )
    if args.exclude:
        exclude_samples(cfg, args.exclude)
    cfg.launcher = args.launcher
    name = Path(args.config.split('::')[-1]).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{name}'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise GuardConfigError(
                f'--auto-scale-lr: {args.config} has no '
                'auto_scale_lr.base_batch_size to scale from.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        # With None, MMEngine resumes from the newest checkpoint itself.
        cfg.load_from = None
        if args.resume != 'auto':
            cfg.load_from = args.resume
    return cfg


def exclude_samples(cfg: Config, path: str) -> None:
    """Leave the samples on a list out of the training dataset.

    Raises:
        GuardConfigError: If there is no such list or no training dataset.
    """
    from mmnanguard.core import GuardConfigError
    from mmnanguard.datasets.sample_list import read_sample_list

    # Before the dataset is built, which may take minutes.
    read_sample_list(path)
    loader = cfg.get('train_dataloader')
    if not loader or not isinstance(loader.get('dataset'), dict):
        raise GuardConfigError(
            '--exclude: the config has no train_dataloader.dataset of which '
            'samples could be left out.'
        )
    wrapper = dict(type='mmnanguard.ExcludeSamples', samples=path)
    # The config that an earlier run with this list has dumped.
    is_wrapped = all(loader.dataset.get(k) == v for k, v in wrapper.items())
    if not is_wrapped:
        loader.dataset = dict(wrapper, dataset=loader.dataset)


def check_checkpoint(path: str) -> None:
    """Check that a local checkpoint can be read, before all is built.

    Raises:
        GuardConfigError: If it is missing, empty, cut off, or another file.
    """
    from mmnanguard.core import GuardConfigError
    from mmnanguard.numerics.checkpoints.checkpoint_file import load

    # MMEngine also reads other places, such as s3://...
    if '://' in path or Path(path).is_dir():
        return
    try:
        load(Path(path))
    except (OSError, ValueError) as error:
        raise GuardConfigError(f'--resume {path}: {error}') from error
    except Exception:
        # It holds classes that are not allowed here: MMEngine decides.
        return


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    # Configs of this project import their own modules from its root.
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)

    from mmnanguard._tool_parser import HALTED, complain
    from mmnanguard.core import GuardConfigError, TrainingHalted
    from mmnanguard.hooks._shared.roles import EventSource, has_hook
    from mmnanguard.hooks.recovery.choose_resume import resume_from_clean
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    try:
        cfg = load_config(args)
        allow_mmengine_checkpoints()
        if args.resume and args.resume != 'auto':
            check_checkpoint(args.resume)
        # A project may register a runner of its own.
        if 'runner_type' in cfg:
            runner = RUNNERS.build(cfg)
        else:
            runner = Runner.from_cfg(cfg)
        # In a Runner, NanGuardHook does the same.
        is_looked_at = isinstance(runner, Runner) and has_hook(
            runner, EventSource
        )
        if args.resume == 'auto' and not is_looked_at:
            resume_from_clean(runner)
        runner.train()
    except GuardConfigError as error:
        # Its message says what to do; a traceback would hide it.
        return complain(error)
    except TrainingHalted:
        # The log says why.
        return HALTED
    return 0


if __name__ == '__main__':
    sys.exit(main())
