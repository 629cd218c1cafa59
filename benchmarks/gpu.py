"""Try and measure the guard on a real GPU, within a few minutes.

One command runs the tests that need a GPU, measures updates and whole
iterations, guarded beside unguarded in turns, and lets ranks agree over NCCL
where there are several GPUs. A part that cannot run says why, and the next
part follows. It needs no network and no installed mmnanguard.

Example:
    python benchmarks/gpu.py --out work_dirs/gpu
    python benchmarks/gpu.py --simulated-device --quick
"""

import argparse
import copy
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
if find_spec('torch') is None:
    sys.exit(
        f'{sys.executable} has no torch; name a Python that has it: '
        'make gpu GPU_PYTHON=/path/to/python'
    )

import accelerator  # noqa: E402
import benchmark  # noqa: E402
import mmengine  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from baseline import CpuAmpOptimWrapper  # noqa: E402
from gpu_ranks import measure_ranks  # noqa: E402
from mmengine.optim import AmpOptimWrapper  # noqa: E402
from whole_models import build_model, make_batch  # noqa: E402

from mmnanguard.numerics.stability.window_probe import WindowProbe  # noqa: E402
from mmnanguard.optim import NanGuardAmpOptimWrapper  # noqa: E402

MARKED = re.compile(r'pytest\.mark\.gpu(_too)?\b')
NUM_WARM_UPS = 6  # the guard's first updates also look for changes
GUARDED, UNGUARDED = 'mmnanguard', 'MMEngine'
SAMPLED = 'sampled'
INTERVAL = 50  # of StabilityMonitorHook


class Setting:
    """The device, the options and the end of a run of all parts.

    Attributes:
        deadline: Time of ``time.monotonic``.
    """

    def __init__(self, args):
        self.device = accelerator.name()
        self.is_simulated = args.simulated_device
        self.is_quick = args.quick
        self.deadline = time.monotonic() + 60 * args.minutes

    def seconds_left(self):
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()


def describe_machine(setting):
    """Return the names of the machine and the versions of its stack."""
    about = dict(
        device=setting.device,
        name='simulated' if setting.is_simulated else None,
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        date=time.strftime('%Y-%m-%d'),
    )
    if setting.device == 'cuda':
        about.update(
            name=torch.cuda.get_device_name(),
            count=torch.cuda.device_count(),
            cuda=torch.version.cuda,
            capability='.'.join(map(str, torch.cuda.get_device_capability())),
        )
    return about


# Parts: each returns rows


def run_tests(setting):
    """Run the tests marked ``gpu`` in a process of their own."""
    files = [
        str(path)
        for path in sorted(ROOT.glob('tests/test_*/test_*.py'))
        if MARKED.search(path.read_text(encoding='utf-8'))
    ]
    if setting.is_quick:
        files = [file for file in files if 'late_copies' in file]
    options = ['-q', '-p', 'no:cacheprovider', '-m', 'gpu or gpu_too']
    if setting.is_simulated:
        options.append('--simulated-device')
    folders = [str(ROOT), str(ROOT / 'tests')]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(
            [*folders, os.environ.get('PYTHONPATH', '')]
        ),
        # Plugins of other versions may lie beside the carried packages.
        PYTEST_DISABLE_PLUGIN_AUTOLOAD='1',
    )
    done = subprocess.run(
        # Warnings of another stack are no failures.
        [sys.executable, '-m', 'pytest', *options, '-W', 'default', *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(30, 0.5 * setting.seconds_left()),
    )
    lines = done.stdout.splitlines()
    names = ('FAILED ', 'ERROR ', 'SKIPPED ')
    return [
        dict(
            status=done.returncode,
            summary=lines[-1] if lines else done.stderr[-500:],
            details=[line for line in lines if line.startswith(names)],
        )
    ]


def measure_updates(setting):
    """Measure updates of the tensors of models: times, reads, kernels."""
    rows, params, repeat = [], ('resnet50', 'vit-b'), 20
    if setting.is_quick:
        params, repeat = ('tiny',), 2
    kinds = product(
        params, ('fp32', 'fp16'), ('fused AdamW', 'SGD'), ('above', 'none')
    )
    end = time.monotonic() + 0.3 * setting.seconds_left()
    for kind in kinds:
        if time.monotonic() > end:
            break
        row = benchmark.measure_update(kind, repeat, setting.device)
        for name, side in row.pop('sides').items():
            rows.append({**row, 'side': name, **side})
    return rows


class Iteration:
    """A whole iteration that a benchmark can repeat."""

    def __init__(self, model, data, make_wrapper):
        self.model, self.data = copy.deepcopy(model), data
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-6, fused=True
        )
        self.wrapper = make_wrapper(
            optimizer=optimizer,
            clip_grad=dict(max_norm=1.0),
            # The default scale overflows at first, and an update that is
            # rejected is no measure of one that is not.
            loss_scale=dict(init_scale=128.0),
        )

    def prepare(self):
        """Do nothing: an iteration leaves the next one ready."""

    def run(self):
        """Train one batch."""
        self.model.train_step(self.data, optim_wrapper=self.wrapper)


class Sampled(Iteration):
    """An iteration that StabilityMonitorHook samples."""

    def run(self):
        """Train one batch, and take the sample."""
        probe = WindowProbe(
            dict(self.model.named_modules()),
            dict(self.model.named_parameters()),
            set(),
            self.wrapper.guard.scaler.get_scale(),
            self.model,
        )
        super().run()
        probe.sample(1, 1e-6, is_adaptive=True)


def measure_iterations(setting):
    """Measure whole iterations, guarded and unguarded in turns."""
    plain = CpuAmpOptimWrapper if setting.is_simulated else AmpOptimWrapper
    sides = {
        GUARDED: (Iteration, NanGuardAmpOptimWrapper),
        UNGUARDED: (Iteration, plain),
    }
    return compare(setting, sides, ('float16', 'bfloat16'), 0.5)


def measure_samples(setting):
    """Measure iterations that are sampled, beside iterations that are not."""
    sides = {
        SAMPLED: (Sampled, NanGuardAmpOptimWrapper),
        GUARDED: (Iteration, NanGuardAmpOptimWrapper),
    }
    rows = compare(setting, sides, ('float16',), 0.2)
    for row in rows:
        if 'ratio' in row:
            # At the default interval, after the dense start.
            percent = 100 * (row['ratio'] - 1) / INTERVAL
            row['percent_at_interval'] = round(percent, 3)
    return rows


def compare(setting, sides, dtypes, share):
    """Measure whole iterations of two kinds in turns.

    The ratio is that of the first kind to the second.

    Args:
        setting: The setting.
        sides: The class of iteration and that of the wrapper, by name.
        dtypes: The dtypes of autocast.
        share: The share of the time that is left.
    """
    rows, names, size, num_images = [], ('resnet50', 'vit-b'), 224, 64
    if setting.is_quick:
        names, size, num_images = ('tiny-resnet', 'tiny-vit'), 32, 2
    end = time.monotonic() + share * setting.seconds_left()
    for name, dtype in product(names, dtypes):
        if time.monotonic() > end:
            break
        model, sample_type, source = build_model(name, size)
        model.to(setting.device).train()
        data = make_batch(num_images, size, sample_type, setting.device)
        iterations = {
            side: kind(model, data, partial(wrapper, dtype=dtype))
            for side, (kind, wrapper) in sides.items()
        }
        for iteration in iterations.values():
            for _ in range(NUM_WARM_UPS):
                iteration.run()
        wait = getattr(torch, setting.device).synchronize
        repeat = 3 if setting.is_quick else 30
        times = benchmark.measure([*iterations.values()], repeat, wait)
        ratios = np.percentile(times[:, 0] / times[:, 1], (50, 10, 90))
        low, high = ratios[1:]
        for index, (side, iteration) in enumerate(iterations.items()):
            row = dict(model=name, source=source, dtype=dtype, side=side)
            row['ms'] = round(float(np.median(times[:, index])), 3)
            if index == 0:
                row['ratio'] = round(float(ratios[0]), 3)
                row['range'] = f'{low:.3f}-{high:.3f}'
            row.update(count_of(setting, iteration))
            if side != UNGUARDED:
                row['rejected'] = iteration.wrapper.guard.state.total_skips
            rows.append(row)
    return rows


def count_of(setting, iteration):
    """Return the waits, kernels and peak memory of an iteration."""
    with accelerator.count_waits() as waits:
        iteration.run()
    counts = dict(waits=waits.count)
    if setting.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        counts['kernels'] = benchmark.count_work(iteration, 'cuda')['kernels']
        counts['peak_mib'] = torch.cuda.max_memory_allocated() >> 20
    return counts


def agree(setting):
    """Let ranks agree, over NCCL where there are several GPUs."""
    if setting.device != 'cuda':
        return [measure_ranks(2, 'gloo', 'cpu')]
    rows = [measure_ranks(torch.cuda.device_count(), 'nccl', 'cuda')]
    if torch.cuda.device_count() == 1:
        # NCCL alone takes no fault on one of several ranks.
        rows.append(measure_ranks(2, 'gloo', 'cpu'))
    return rows


PARTS = {
    'iterations': measure_iterations,
    'monitor': measure_samples,
    'updates': measure_updates,
    'ranks': agree,
    'tests': run_tests,
}


def write_table(rows):
    """Return rows as a Markdown table; lists follow it as lines."""
    keys, lines = [], []
    for row in rows:
        keys += [key for key in row if key not in keys]
    columns = [key for key in keys if not isinstance(rows[0].get(key), list)]
    lines.append(f'| {" | ".join(columns)} |')
    lines.append('| --- ' * len(columns) + '|')
    for row in rows:
        cells = [str(row.get(key, '')) for key in columns]
        lines.append(f'| {" | ".join(cells)} |')
    for row in rows:
        for key, value in row.items():
            if isinstance(value, list) and value:
                lines += ['', f'{key}:', '', *[f'- {item}' for item in value]]
    return '\n'.join(lines)


def write_report(results):
    """Return the results in Markdown."""
    about = results['machine']
    facts = ', '.join(f'{key} {about[key]}' for key in about if about[key])
    parts = [f'# mmnanguard on {about["name"]}', facts]
    for name, rows in results['parts'].items():
        parts.append(f'## {name.capitalize()}')
        if isinstance(rows, str):
            parts.append(f'Did not run:\n\n```text\n{rows}```')
        elif rows:
            parts.append(write_table(rows))
    return '\n\n'.join(parts) + '\n'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--out', type=Path, default='work_dirs/gpu')
    add('--minutes', type=float, default=8.0, help='of all parts together')
    add('--parts', nargs='+', choices=PARTS, default=[*PARTS])
    add('--quick', action='store_true', help='tiny models, few rounds')
    add('--simulated-device', action='store_true')
    args = parser.parse_args(argv)
    if args.simulated_device:
        accelerator.simulate()
    if accelerator.name() is None:
        parser.error('no GPU; --simulated-device tries this command on a CPU')
    setting = Setting(args)
    results = dict(machine=describe_machine(setting), parts={})
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        start = time.monotonic()
        try:
            rows = PARTS[name](setting)
        except Exception:
            rows = traceback.format_exc()
        results['parts'][name] = rows
        print(f'{name}: {time.monotonic() - start:.0f} s', file=sys.stderr)
        # After each part: a machine may be taken away.
        text = json.dumps(results, indent=2) + '\n'
        (args.out / 'gpu.json').write_text(text, encoding='utf-8')
        report = write_report(results)
        (args.out / 'gpu.md').write_text(report, encoding='utf-8')
    print(report)
    failed = [n for n, rows in results['parts'].items() if rows_fail(rows)]
    return 1 if failed else 0


def rows_fail(rows):
    """Whether a part did not run, or found something wrong."""
    if isinstance(rows, str):
        return True
    return any(row.get('wrong') or row.get('status') for row in rows)


if __name__ == '__main__':
    sys.exit(main())
