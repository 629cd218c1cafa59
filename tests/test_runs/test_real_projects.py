"""mmpretrain's own configs, started by its own launcher and by the one here.

Nothing of mmpretrain is changed: each run is a command line that a user could
type, in a process of its own.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from imagenet_digits import make_imagenet_digits
from mmpretrain_recipes import BATCH_SIZE, NUM_ITERS, RECIPES

from mmnanguard.report import read_events
from mmnanguard.safe_load import allow_mmengine_checkpoints

# Where `make test` puts mmpretrain and torchvision, apart from the rest.
PACKAGES = Path(sys.prefix) / 'mmpretrain'
MIM = PACKAGES / 'mmpretrain' / '.mim'
TESTS = Path(__file__).parents[1]
TOOLS = TESTS.parent / 'tools'
IMPORTS = (
    'mmpretrain.models',
    'mmpretrain.datasets',
    'mmpretrain.engine',
    'mmpretrain.evaluation',
    'mmpretrain.visualization',
    'matplotlib.figure',
    'matplotlib.backends.backend_agg',
    'toys',
)

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(),
    reason=f'needs requirements/mmpretrain.txt in {PACKAGES}',
)

WRAPPER = dict(
    fp32=['type=mmnanguard.NanGuardOptimWrapper'],
    bf16=['type=mmnanguard.NanGuardAmpOptimWrapper', 'dtype=bfloat16'],
    # At the floor, so that no fault moves it: gradients would round otherwise.
    fp16=[
        *('type=mmnanguard.NanGuardAmpOptimWrapper', 'dtype=float16'),
        'loss_scale=1.',
    ],
)
PLAIN = dict(
    fp32=['type=OptimWrapper'],
    bf16=['type=baseline.CpuAmpOptimWrapper', 'dtype=bfloat16'],
    fp16=[
        *('type=baseline.CpuAmpOptimWrapper', 'dtype=float16'),
        'loss_scale=1024.',
    ],
)
HOOKS = [
    'default_hooks.nan_guard.type=mmnanguard.NanGuardHook',
    'default_hooks.event_log.type=mmnanguard.EventLogHook',
]
STRUCK = (2, 3, 5, 6, 8)
DUMP = '*/nanguard/dumps/iter_2_rank0.pt'
CPU = ['--device', 'cpu']
LOOP = ['train_cfg._delete_=True', 'train_cfg.type=toys.LeaveOutEpochLoop']
LEAVE_OUT = [*LOOP, f'train_cfg.leave_out={",".join(map(str, STRUCK))}']


def faults(recipe):
    """A command line has no list of dicts; numbered keys stand for one."""
    last = 'buffer' if recipe.has_buffers else 'grad'
    sites = ('grad', 'input', 'loss', 'activation', last)
    values = ('nan', 'nan', 'inf', '-inf', 'inf')
    options = ['default_hooks.drill.type=mmnanguard.FaultInjectionHook']
    for index, fault in enumerate(zip(STRUCK, sites, values)):
        options += [
            f'default_hooks.drill.faults.{index}.{key}={value}'
            for key, value in zip(('iter', 'site', 'value'), fault)
        ]
    return options


def wrapper(options):
    return [f'optim_wrapper.{option}' for option in options]


def commands(name, data_root, folder):
    """Of one recipe, by the name of the run, which is its work_dir's."""
    recipe = RECIPES[name]
    guarded, plain = WRAPPER[recipe.precision], PLAIN[recipe.precision]
    strike = faults(recipe)

    def theirs(run, *options, flags=()):
        script = [MIM / 'tools' / 'train.py', MIM / 'configs' / recipe.config]
        return command(script, run, flags, options)

    def ours(run, guard, *options):
        script = [TOOLS / 'train.py', f'mmpretrain::{recipe.config}']
        return command(script, run, ['--guard', guard], options)

    def command(script, run, flags, options):
        work_dir = ['--work-dir', folder / f'{name}-{run}']
        options = [*recipe.all_options(data_root), *options]
        return [*script, *work_dir, *flags, '--cfg-options', *options]

    # Where a norm is clipped, MMEngine rounds otherwise.
    wide = ['optim_wrapper.clip_grad.max_norm=1e6'] * (name == 'swin')
    scale = wrapper(plain[2:])
    pinned = wrapper(guarded[2:])
    runs = dict(
        plain=theirs('plain', *wrapper(plain), *wide),
        calm=ours('calm', recipe.precision, *scale, *wide),
        faulty=theirs('faulty', *wrapper(guarded), *HOOKS, *strike, *LOOP),
        left_out=ours('left_out', recipe.precision, *pinned, *LEAVE_OUT),
        full=ours(
            *('full', 'full', *wrapper(guarded), *strike, *LOOP),
            'default_hooks.dump.save_weights=True',
            # As many as it takes; they are slow.
            'default_hooks.dump.max_dumps=1',
            'default_hooks.autopsy.max_autopsies=2',
        ),
        replay=[TOOLS / 'replay.py', folder / f'{name}-full' / DUMP, *CPU],
    )
    if name == 'vit':
        resumable = [*wrapper(guarded), *HOOKS, *strike]
        resumable.append('default_hooks.nan_guard.save_rng=True')
        kill = ['default_hooks.kill.type=toys.KillHook']
        kill.append('default_hooks.kill.iter=6')
        runs['whole'] = theirs('whole', *resumable)
        runs['killed'] = theirs('killed', *resumable, *kill)
        runs['resumed'] = theirs('killed', *resumable, flags=['--resume'])
    return {f'{name}-{run}': options for run, options in runs.items()}


def launch(runs):
    path = (TESTS / 'mmpretrain_env', PACKAGES, TESTS.parent, TESTS)
    job = dict(
        imports=IMPORTS,
        runs={name: list(map(str, runs[name])) for name in runs},
    )
    done = subprocess.run(
        [sys.executable, TESTS / 'test_runs' / 'launch_job.py'],
        input=json.dumps(job),
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, path)),
            'PYTHONWARNINGS': 'ignore',
            # Tiny operations wait for one another on a busy machine.
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return make_imagenet_digits(
        tmp_path_factory.mktemp('data'),
        num_train=BATCH_SIZE * NUM_ITERS // 2,
        num_val=BATCH_SIZE,
    )


@pytest.fixture(scope='module')
def launched(data_root, tmp_path_factory):
    """All runs there are, and where they lie."""
    folder = tmp_path_factory.mktemp('runs')
    allow_mmengine_checkpoints()
    runs = {}
    for name in RECIPES:
        runs.update(commands(name, data_root, folder))
    return launch(runs), folder


@pytest.fixture(params=RECIPES)
def runs(request, launched):
    """A recipe's name, and a function from a run to its folder."""
    done, folder = launched

    def work_dir(run, status=0):
        run = f'{request.param}-{run}'
        assert done[run]['status'] == status, done[run]['told'][-3000:]
        return folder / run

    return request.param, work_dir


def read_rows(work_dir, kind='update'):
    (file,) = work_dir.glob('*/nanguard/events.jsonl')
    # Bare NaN and Infinity are not JSON: the callback is called for them.
    rows = [
        json.loads(line, parse_constant=pytest.fail)
        for line in file.read_text().splitlines()
    ]
    return [row for row in rows if row['kind'] == kind]


def leaves(value, path=''):
    if isinstance(value, (dict, list, tuple)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from leaves(part, f'{path}.{key}')
    else:
        yield path, value


def what_is_left(work_dir):
    """All of a run's last checkpoint that training goes on from: weights,
    buffers, averages, optimizer, schedules.
    """
    checkpoint = torch.load(work_dir / 'epoch_2.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == NUM_ITERS
    kept = {
        key: checkpoint[key]
        for key in ('state_dict', 'ema_state_dict', 'param_schedulers')
        if key in checkpoint
    }
    for key in ('state', 'param_groups'):
        kept[key] = checkpoint['optimizer'][key]
    return dict(leaves(kept))


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [
        name for name in left if not is_same(left[name], right[name])
    ] == []


def is_same(left, right):
    if not isinstance(left, torch.Tensor):
        return left == right
    left, right = (one.flatten().view(torch.uint8) for one in (left, right))
    return torch.equal(left, right)


def test_faults_leave_no_trace(runs):
    """Through mmpretrain's launcher, and with all hooks through that here:
    both equal the run that never had those iterations.
    """
    name, work_dir = runs
    oracle = what_is_left(work_dir('left_out'))
    assert ('.ema_state_dict.steps' in oracle) == (name in ('vit', 'deit'))
    for leaf, value in oracle.items():
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all(), leaf
    assert_same(what_is_left(work_dir('faulty')), oracle)
    assert_same(what_is_left(work_dir('full')), oracle)


def test_without_faults_it_is_mmengine(runs):
    _, work_dir = runs
    calm = what_is_left(work_dir('calm'))
    assert_same(calm, what_is_left(work_dir('plain')))
    assert not is_same(
        *(
            torch.cat([v.flatten() for k, v in left.items() if 'bias' in k])
            for left in (calm, what_is_left(work_dir('left_out')))
        )
    )


@pytest.mark.parametrize('run', ['faulty', 'full'])
def test_rows_tell_what_happened(runs, run, data_root):
    name, work_dir = runs
    weights = {
        leaf.split('.', 2)[2]
        for leaf in what_is_left(work_dir(run))
        if leaf.startswith('.state_dict.')
    }
    updates = read_rows(work_dir(run))
    last = 'buffer' if RECIPES[name].has_buffers else 'grad'
    causes = ['grad', 'input' if run == 'full' else 'loss', 'loss', 'loss']
    assert [(row['iter'], row['action'], row['cause']) for row in updates] == [
        (iteration, 'skip', f'{cause}_nonfinite')
        for iteration, cause in zip(STRUCK, [*causes, last])
    ]
    for row in (updates[0], updates[-1]):
        (param,) = row['params']
        assert param['name'] in weights
        assert param['count'] == 1
    images = {str(path) for path in (data_root / 'train').iterdir()}
    samples = [set(row['samples']) for row in updates]
    assert [len(batch & images) for batch in samples] == [BATCH_SIZE] * 5
    assert samples[0].isdisjoint(samples[1])
    assert samples[2].isdisjoint(samples[3])
    if run == 'full':
        (row,) = read_rows(work_dir(run), 'input')
        assert row['samples'] == [updates[1]['samples'][0]]


def test_a_dump_is_enough_to_run_it_again(runs):
    """In another process; the same as the autopsy during training."""
    _, work_dir = runs
    work_dir('replay')
    (path,) = work_dir('full').glob(DUMP)
    row = json.loads(path.with_suffix('.json').read_text())
    live = read_rows(work_dir('full'), 'autopsy')[0]
    assert {key: row[key] for key in live} == live
    assert row['exact']
    assert not row['repeats']
    assert row['outputs']['backbone']['is_finite']


def test_killed_and_resumed(runs):
    """`--resume` of mmpretrain's own launcher, in the second epoch."""
    name, work_dir = runs
    if name != 'vit':
        pytest.skip('of one recipe')
    whole, killed = work_dir('whole'), work_dir('killed', -signal.SIGKILL)
    work_dir('resumed')
    assert_same(what_is_left(killed), what_is_left(whole))
    told = [
        [
            (row['iter'], row['cause'])
            for row in read_events(one)
            if 'cause' in row
        ]
        for one in (killed, whole)
    ]
    assert told[0] == told[1]
    assert [iteration for iteration, _ in told[0]] == list(STRUCK)
