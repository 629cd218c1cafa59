"""Rehearse the bad day: what would faults do to this job?

Any mm config will do, once it has a FaultInjectionHook. The job runs three
times: guarded with the faults, guarded without them, and with the faults
under MMEngine's own wrapper. Takes the options of tools/train.py. Exit status
1: a guarded run crashed or ended with non-finite weights, or the guard saw
nothing of a fault (finite values and own faults excepted, which may do no
harm).

Example:
    python tools/fire_drill.py configs/digits/drill_fp16.py
"""

import copy
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import train
from mmengine.device import get_device
from rich.console import Console
from rich.table import Table

from mmnanguard.core.rows.event_files import EVENTS_FILE


def find(node, key):
    """Each dict at or below a node that has this key."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return []
    if key in node:
        return [node]
    return [each for value in node.values() for each in find(value, key)]


def name_of(cfg):
    return str((cfg or {}).get('type')).strip("'>").split('.')[-1]


def unguard(cfg):
    """The config under MMEngine's own wrapper, and what to call that."""
    from mmnanguard.registry import HOOKS

    cfg, title = copy.deepcopy(cfg), 'unguarded'
    for wrapper in find(cfg.optim_wrapper, 'optimizer'):
        dropped = ['guard']
        wrapper['type'] = name_of(wrapper).replace('NanGuard', '')
        if wrapper['type'] == 'AmpOptimWrapper' and get_device() == 'cpu':
            wrapper['type'], title = 'OptimWrapper', 'unguarded, fp32 (no GPU)'
            dropped += ['loss_scale', 'dtype', 'use_fsdp']
        clip = wrapper.get('clip_grad') or {}
        if clip.get('type', 'norm') not in ('norm', 'value'):
            dropped.append('clip_grad')
        for key in dropped:
            wrapper.pop(key, None)
    ours = set(HOOKS.module_dict) - {'FaultInjectionHook'}
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if name_of(hook) not in ours]
    for key, hook in list(cfg.get('default_hooks', {}).items()):
        if name_of(hook) in ours:
            del cfg.default_hooks[key]
    return cfg, title


def run(title, cfg, folder):
    """Train in a process of its own; what came of it, and its event rows."""
    print(f'{title}: {folder}', flush=True)
    folder.mkdir(parents=True)
    cfg.dump(folder / 'drill.py')
    command = [sys.executable, train.__file__, folder / 'drill.py']
    start, log = time.perf_counter(), folder / 'console.log'
    with open(log, 'w') as file:
        status = subprocess.call(
            [*command, '--work-dir', folder], stdout=file, stderr=file
        )
    seconds = round(time.perf_counter() - start)
    if status:
        print(*log.read_text().splitlines()[-30:], sep='\n', file=sys.stderr)
    bad, pointer = None, folder / 'last_checkpoint'
    if pointer.exists():
        from mmnanguard.numerics import load_plain

        saved = load_plain(pointer.read_text())
        weights = saved['state_dict'].items()
        bad = [name for name, value in weights if not value.isfinite().all()]
    result = dict(run=title, exit=status, seconds=seconds, bad_weights=bad)
    for row in read_rows(folder, 'vis_data/scalars.json'):
        if 'lr' not in row:  # then it is a validation's; the last one stays
            keys = row.keys() - {'time', 'data_time', 'step'}
            result.update((key, row[key]) for key in sorted(keys))
    return result, read_rows(folder, EVENTS_FILE)


def read_rows(folder, name):
    """MMEngine writes a bare NaN, which is not JSON; as a string it is."""
    return [
        json.loads(line, parse_constant=lambda text: str(float(text)))
        for file in folder.glob(f'*/{name}')
        for line in file.read_text().splitlines()
    ]


def join(fault, events, window):
    """A fault, and what the guard did with the update that it struck."""
    from mmnanguard.core.causes import facts_of_cause

    value = fault.type or str(fault.value)
    told = dict(iter=fault.iter, site=fault.site, value=value)
    for row in events:
        if row['kind'] == 'update' and 0 <= row['iter'] - fault.iter < window:
            blamed = [param['name'] for param in row['params']]
            facts = facts_of_cause(row['cause'])
            if facts.blames == 'gradient' and not facts.names_origin:
                blamed = row['samples']  # no tensor stands out
            told.update(action=row['action'], cause=row['cause'])
            told['blamed'] = blamed
    return told


def must_be_seen(fault):
    """Whether the guard must act; a finite value or an own fault may do no
    harm.
    """
    return fault.type is None and not math.isfinite(fault.value)


def show(rows):
    table = Table(*dict.fromkeys(key for row in rows for key in row))
    for row in rows:
        cells = [row.get(column.header) for column in table.columns]
        table.add_row(*map(tell, cells))
    Console(markup=False).print(table)


def tell(value):
    if isinstance(value, list):
        more = f' and {len(value) - 1} more' if value[1:] else ''
        return f'{value[0]}{more}' if value else 'none'
    if isinstance(value, float):
        return f'{value:.4g}'
    return '-' if value is None else str(value)


def main(argv=None):
    sys.path[:0] = [str(train.ROOT)]
    train.__doc__ = __doc__  # the options are the same, --help is not
    cfg = train.load_config(train.parse_args(argv))
    from mmnanguard.hooks import FaultInjectionHook
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    hooks = [cfg.get('default_hooks'), cfg.get('custom_hooks')]
    drills, faults, window = find(hooks, 'faults'), [], 1
    if not drills or 'NanGuard' not in str(cfg.optim_wrapper):
        raise SystemExit(
            'A drill needs a guarded optim_wrapper (or --guard) and a '
            'FaultInjectionHook in the config.'
        )
    # The events are what the drill reads.
    for hook in ('NanGuardHook', 'EventLogHook'):
        if hook not in str(hooks):
            cfg.default_hooks[hook] = dict(type=f'mmnanguard.{hook}')
    if (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = dict(seed=0)  # the runs differ in nothing else
    for drill in drills:
        for fault in find(drill['faults'], 'site'):
            # MMEngine dumps the float nan as a name that nothing defines.
            if fault.get('type') is None:
                fault['value'] = str(fault.get('value', 'nan'))
        faults += FaultInjectionHook(drill['faults']).faults
    for wrapper in find(cfg.optim_wrapper, 'optimizer'):
        window = max(window, wrapper.get('accumulative_counts', 1))
    folder = Path(cfg.work_dir) / time.strftime('%Y%m%d_%H%M%S')
    guarded, events = run('guarded', cfg, folder / 'guarded')
    plain, title = unguard(cfg)
    plain, _ = run(title, plain, folder / 'unguarded')
    for drill in drills:
        drill['faults'] = []
    calm, _ = run('guarded, no faults', cfg, folder / 'no_faults')
    told = [join(fault, events, window) for fault in faults]
    failures = [
        f'the guard saw nothing of {row}'
        for fault, row in zip(faults, told)
        if 'action' not in row and must_be_seen(fault)
    ]
    # A mask may hold -inf by design: it does so without faults as well.
    spoilt = {*(guarded['bad_weights'] or ())} - {*(calm['bad_weights'] or ())}
    failures += [f'{name} is not finite' for name in sorted(spoilt)]
    # Halting is the right answer to weights that go bad between updates.
    is_halted = any(row.get('cause') == 'weight_nonfinite' for row in told)
    if calm['exit'] or (guarded['exit'] and not is_halted):
        failures.append('a guarded run crashed, see above')
    runs = [guarded, calm, plain]
    show(told)
    show(runs)
    for failure in failures:
        print(f'DRILL FAILED: {failure}')
    passed = not failures
    if passed:
        print('drill passed')
    report = dict(passed=passed, faults=told, runs=runs)
    file = Path(cfg.work_dir, 'fire_drill.json')
    file.write_text(json.dumps(report, indent=2, allow_nan=False))
    return int(not passed)


if __name__ == '__main__':
    sys.exit(main())
