"""Inject faults into a job, and show what the guard does with them.

Any mm config will do. The job runs three times: guarded with the faults,
guarded without them, and with the faults under MMEngine's own wrapper. A
config with a FaultInjectionHook trains to its end; without one, a NaN strikes
a loss and a gradient, and each run ends after 12 updates. Takes the options of
tools/train.py. Exit status 1: a guarded run crashed or ended with non-finite
weights, or the guard did not act on a fault; 2: a wrong command line or
config. Faults with a finite value or with a type of the user's may do no harm
and are excepted.

Example:
    python tools/fire_drill.py configs/digits/drill_fp16.py
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import train
from mmengine.config import Config
from mmengine.device import get_device

from mmnanguard._support.escape import escape
from mmnanguard.core.rows.event_files import EVENTS_FILE

if TYPE_CHECKING:
    from mmnanguard.hooks.drill.fault import Fault

# A row of a log, or of a table of this tool.
Row = Dict[str, Any]


def find(node: object, key: str) -> List[Dict[str, Any]]:
    """Return the outermost dicts at or below a node that have this key."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return []
    if key in node:
        return [node]
    dicts = []
    for value in node.values():
        dicts += find(value, key)
    return dicts


def name_of(cfg: Optional[Mapping[str, Any]]) -> str:
    """Return the bare name of a config's type, which may be a class."""
    return str((cfg or {}).get('type')).strip("'>").split('.')[-1]


def unguard(cfg: Config) -> Tuple[Config, str]:
    """Return a config under MMEngine's own wrapper, and a title for it."""
    from mmnanguard.registry import HOOKS

    cfg, title = copy.deepcopy(cfg), 'unguarded'
    for wrapper in find(cfg.optim_wrapper, 'optimizer'):
        dropped = ['guard']
        # Each wrapper has the name of MMEngine's wrapper with this prefix.
        wrapper['type'] = name_of(wrapper).replace('NanGuard', '')
        # MMEngine's wrapper for half precision refuses to run on a CPU.
        if wrapper['type'] == 'AmpOptimWrapper' and get_device() == 'cpu':
            wrapper['type'], title = 'OptimWrapper', 'unguarded, fp32 (no GPU)'
            dropped += ['loss_scale', 'dtype', 'use_fsdp']
        # Only the guard has other kinds of clipping.
        clip = wrapper.get('clip_grad') or {}
        if clip.get('type', 'norm') not in ('norm', 'value'):
            dropped.append('clip_grad')
        for key in dropped:
            wrapper.pop(key, None)
    # The faults stay, and so do the hooks of the user.
    ours = set(HOOKS.module_dict) - {'FaultInjectionHook'}
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if name_of(hook) not in ours]
    for key, hook in list(cfg.get('default_hooks', {}).items()):
        if name_of(hook) in ours:
            del cfg.default_hooks[key]
    return cfg, title


def run(title: str, cfg: Config, folder: Path) -> Tuple[Row, List[Row]]:
    """Train in a separate process; return the result and its event rows."""
    print(f'{title}: {folder}', flush=True)
    folder.mkdir(parents=True)
    cfg.dump(folder / 'drill.py')
    # A separate process, so that a crash or an exit ends only this run.
    command = [sys.executable, train.__file__, folder / 'drill.py']
    start, log = time.perf_counter(), folder / 'console.log'
    with open(log, 'w') as file:
        status = subprocess.call(
            [*command, '--work-dir', folder], stdout=file, stderr=file
        )
    seconds = round(time.perf_counter() - start)
    if status:
        print(*log.read_text().splitlines()[-30:], sep='\n', file=sys.stderr)
    # MMEngine writes this file with the path of the newest checkpoint.
    bad, pointer = None, folder / 'last_checkpoint'
    if pointer.exists():
        from mmnanguard.numerics import load_plain

        saved = load_plain(pointer.read_text())
        weights = saved['state_dict'].items()
        bad = [name for name, value in weights if not value.isfinite().all()]
    result = dict(run=title, exit=status, seconds=seconds, bad_weights=bad)
    for row in read_rows(folder, 'vis_data/scalars.json'):
        # A row without a learning rate is of validation; the last one stays.
        if 'lr' not in row:
            for key in sorted(row.keys() - {'time', 'data_time', 'step'}):
                result[key] = row[key]
    return result, read_rows(folder, EVENTS_FILE)


def read_rows(folder: Path, name: str) -> List[Row]:
    """Return the rows of a run's file, with NaN and Inf as strings.

    MMEngine writes a bare NaN, which is no JSON and cannot be written again.
    """
    rows = []
    for file in folder.glob(f'*/{name}'):
        for line in file.read_text().splitlines():
            row = json.loads(line, parse_constant=lambda x: str(float(x)))
            rows.append(row)
    return rows


def join(fault: 'Fault', events: Iterable[Row], window: int) -> Row:
    """Return a fault, and the guard's action on the update that it hit.

    Args:
        fault: The fault.
        events: The rows of the run's events.
        window: The number of iterations in an update.
    """
    from mmnanguard.core.causes import facts_of_cause

    value = fault.type or str(fault.value)
    outcome: Row = dict(iter=fault.iter, site=fault.site, value=value)
    for row in events:
        # A fault in any micro-batch is judged at the end of its window.
        if row['kind'] == 'update' and 0 <= row['iter'] - fault.iter < window:
            blamed = list(map(itemgetter('name'), row['params']))
            facts = facts_of_cause(row['cause'])
            if facts.blames == 'gradient' and not facts.names_origin:
                # No parameter stands out: the whole batch is bad.
                blamed = row['samples']
            outcome.update(action=row['action'], cause=row['cause'])
            outcome['blamed'] = blamed
    return outcome


def must_be_seen(fault: 'Fault') -> bool:
    """Whether the guard must act on a fault.

    A finite value, or a fault with a type of the user's, may do no harm.
    """
    return fault.type is None and not math.isfinite(fault.value)


def show(rows: Sequence[Row]) -> None:
    """Print a table with a column for each row, and a line for each key."""
    from mmnanguard._tables import print_table

    # A dict, because a set would lose the order of the keys.
    headers: Dict[str, None] = {}
    for row in rows:
        headers.update(dict.fromkeys(row))
    # A job has many metrics, and a terminal 80 columns.
    lines = []
    for header in headers:
        values = (as_text(row.get(header)) for row in rows)
        lines.append([header, *values])
    print_table(lines[0], lines[1:])


def as_text(value: object) -> str:
    """Format a value for a table; a list as its first item and a count."""
    if value is None:
        return '-'
    if value == []:
        return 'none'
    if isinstance(value, list) and len(value) > 1:
        return f'{value[0]} and {len(value) - 1} more'
    if isinstance(value, list):
        return str(value[0])
    if isinstance(value, float):
        return f'{value:.4g}'
    return str(value)


def find_failures(
    faults: Sequence['Fault'], outcomes: Sequence[Row], guarded: Row, calm: Row
) -> List[str]:
    """Return the reasons why the drill has failed.

    Args:
        faults: The planted faults.
        outcomes: The guard's action on each fault.
        guarded: The result of the guarded run with the faults.
        calm: The result of the guarded run without faults.
    """
    failures = []
    for fault, row in zip(faults, outcomes):
        if 'action' not in row and must_be_seen(fault):
            failures.append(f'the guard saw nothing of {row}')
    # A mask may hold -inf by design: it does so without faults as well.
    bad_by_design = {*(calm['bad_weights'] or ())}
    spoilt = {*(guarded['bad_weights'] or ())} - bad_by_design
    for name in sorted(spoilt):
        failures.append(f'{name} is not finite')
    # Halting is the right answer to weights that go bad between updates.
    is_halted = any(row.get('cause') == 'weight_nonfinite' for row in outcomes)
    if calm['exit'] or (guarded['exit'] and not is_halted):
        failures.append('a guarded run crashed, see above')
    return failures


def plan_faults(drills: Iterable[Dict[str, Any]]) -> List['Fault']:
    """Return the faults of the config's drills.

    A number becomes a string in the config, so that the config can be dumped.
    """
    from mmnanguard.hooks import FaultInjectionHook

    faults: List[Fault] = []
    for drill in drills:
        for fault in find(drill['faults'], 'site'):
            # MMEngine dumps the float nan as a name that nothing defines.
            if fault.get('type') is None:
                fault['value'] = str(fault.get('value', 'nan'))
        faults += FaultInjectionHook(drill['faults']).faults
    return faults


def prepare(cfg: Config) -> Tuple[List[Dict[str, Any]], int]:
    """Give a config all that a drill needs.

    Args:
        cfg: The guarded config, which is changed.

    Returns:
        The configs of the hooks with faults, and the number of iterations in
        an update.

    Raises:
        GuardConfigError: If the config is not guarded.
    """
    from mmnanguard.core import GuardConfigError
    from mmnanguard.hooks.drill.short_drill import plan_short_drill

    if 'NanGuard' not in str(cfg.get('optim_wrapper')):
        raise GuardConfigError(
            'a drill needs a guarded optim_wrapper, and the config has none: '
            'add --guard fp32, bf16, fp16 or full.'
        )
    window = 1
    for wrapper in find(cfg.optim_wrapper, 'optimizer'):
        window = max(window, wrapper.get('accumulative_counts', 1))
    hooks = [cfg.get('default_hooks'), cfg.get('custom_hooks')]
    drills = find(hooks, 'faults')
    if not drills:
        drills = [plan_short_drill(cfg, window)]
    # The drill reads the events.
    for hook in ('NanGuardHook', 'EventLogHook'):
        if hook not in str(hooks):
            cfg.default_hooks[hook] = dict(type=f'mmnanguard.{hook}')
    if (cfg.get('randomness') or {}).get('seed') is None:
        # The runs must differ in nothing but the faults and the guard.
        cfg.randomness = dict(seed=0)
    return drills, window


def drill(cfg: Config, folder: Path) -> Dict[str, Any]:
    """Run the drill of a guarded config, which is changed.

    Returns:
        Whether the drill has ``passed``, its ``failures``, the ``faults``
        with the guard's action on each, and the results of the ``runs``.

    Raises:
        GuardConfigError: If the config is not guarded.
    """
    drills, window = prepare(cfg)
    faults = plan_faults(drills)
    guarded, events = run('guarded', cfg, folder / 'guarded')
    plain, title = unguard(cfg)
    plain, _ = run(title, plain, folder / 'unguarded')
    # These dicts are part of cfg: the next run has no faults.
    for hook in drills:
        hook['faults'] = []
    calm, _ = run('guarded, no faults', cfg, folder / 'no_faults')
    outcomes = [join(fault, events, window) for fault in faults]
    failures = find_failures(faults, outcomes, guarded, calm)
    return dict(
        passed=not failures,
        failures=failures,
        faults=outcomes,
        runs=[guarded, calm, plain],
    )


def run_drill(args: argparse.Namespace) -> int:
    """Run the drill and report it; return the exit status."""
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    cfg = train.load_config(args)
    allow_mmengine_checkpoints()
    folder = Path(cfg.work_dir) / time.strftime('%Y%m%d_%H%M%S')
    report = drill(cfg, folder)
    show(report['faults'])
    show(report['runs'])
    for failure in report.pop('failures'):
        print(f'DRILL FAILED: {escape(failure)}')
    if report['passed']:
        print('drill passed')
    file = Path(cfg.work_dir, 'fire_drill.json')
    file.write_text(json.dumps(report, indent=2, allow_nan=False))
    return int(not report['passed'])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    sys.path[:0] = [str(train.ROOT)]
    # The options are those of train.py; only the text of --help differs.
    parser = train.make_parser(__doc__)
    args = parser.parse_args(argv)
    train.check_args(parser, args)
    from mmnanguard._tool_parser import run_tool

    return run_tool(run_drill, args)


if __name__ == '__main__':
    sys.exit(main())
