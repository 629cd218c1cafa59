"""Command lines that a user could type, and the results of such runs."""

import itertools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from beside_mmpretrain import PACKAGES, REASON, TESTS, run_job
from imagenet_digits import make_imagenet_digits
from recipes import MMDET_MMSEG, MMPRETRAIN, NUM_ITERS, RECIPES
from rectangles import make_rectangles

TOOLS = TESTS.parent / 'tools'
GROUPS = {
    'mmpretrain': (MMPRETRAIN, ['mmpretrain']),
    'mmdet, mmseg': (MMDET_MMSEG, ['mmdet', 'mmseg']),
}
PARTS = ('models', 'datasets', 'engine', 'evaluation', 'visualization')

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
        'loss_scale=16.',
    ],
)
HOOKS = [
    'default_hooks.nan_guard.type=mmnanguard.NanGuardHook',
    'default_hooks.event_log.type=mmnanguard.EventLogHook',
]
STRUCK = (2, 3, 5, 6, 8)
DUMP = '*/nanguard/dumps/iter_2_rank0.pt'


def skip_if_missing(group):
    # torchvision is there, too.
    if not PACKAGES.is_dir():
        pytest.skip(REASON)
    if group == 'mmpretrain':
        return
    for module in ('mmcv._ext', *GROUPS[group][1]):
        pytest.importorskip(
            module,
            reason=f'no {module}: needs mmdet, mmsegmentation and mmcv with '
            'its compiled operations, which has no wheel for each torch',
        )


def make_data(group, folder):
    if group == 'mmpretrain':
        return make_imagenet_digits(folder, num_train=32, num_val=8)
    return make_rectangles(folder, count=8)


def mim_of(project):
    """Return the folder of the configs and tools in a project's wheel."""
    if project == 'mmpretrain':
        return PACKAGES / project / '.mim'
    return Path(find_spec(project).origin).parent / '.mim'


def faults(recipe):
    """Return the faults as numbered keys, as a command line has no list of
    dicts.
    """
    options = ['default_hooks.drill.type=mmnanguard.FaultInjectionHook']
    values = ('nan', 'nan', 'inf', '-inf', 'inf')
    for index, fault in enumerate(zip(STRUCK, sites_of(recipe), values)):
        options += [
            f'default_hooks.drill.faults.{index}.{key}={value}'
            for key, value in zip(('iter', 'site', 'value'), fault)
        ]
    if recipe.struck:
        options.append(f'default_hooks.drill.faults.3.where={recipe.struck}')
    return options


def sites_of(recipe):
    last = 'buffer' if recipe.has_buffers else 'grad'
    inside = ('input', 'activation') if recipe.struck else ('loss', 'loss')
    return ('grad', inside[0], 'loss', inside[1], last)


def loop(recipe, leave_out=()):
    """Return the project's train loop, in a form that can leave iterations
    out.
    """
    kind = 'Epoch' if recipe.by_epoch else 'Iter'
    length = 'max_epochs=2' if recipe.by_epoch else f'max_iters={NUM_ITERS}'
    return [
        'train_cfg._delete_=True',
        f'train_cfg.type=toys.LeaveOut{kind}Loop',
        f'train_cfg.{length}',
        *(f'train_cfg.leave_out={",".join(map(str, leave_out))}',)
        * bool(leave_out),
    ]


def wrapper(options):
    return [f'optim_wrapper.{option}' for option in options]


def commands(name, data_root, folder):
    """Return all runs of a recipe by name, which is also their work_dir."""
    recipe = RECIPES[name]
    guarded, plain = WRAPPER[recipe.precision], PLAIN[recipe.precision]
    strike, own_loop = faults(recipe), loop(recipe)

    def theirs(run, *options, flags=()):
        mim = mim_of(recipe.project)
        script = [mim / 'tools' / 'train.py', mim / 'configs' / recipe.config]
        return command(script, run, flags, options)

    def ours(run, guard, *options):
        config = f'{recipe.project}::{recipe.config}'
        script = [TOOLS / 'train.py', config]
        return command(script, run, ['--guard', guard], options)

    def command(script, run, flags, options):
        work_dir = ['--work-dir', folder / f'{name}-{run}']
        small = [
            option.replace('{data_root}', str(data_root))
            for option in recipe.options
        ]
        return [*script, *work_dir, *flags, '--cfg-options', *small, *options]

    never = ['optim_wrapper.clip_grad.max_norm=1e6'] * recipe.clips
    runs = dict(
        plain=theirs('plain', *wrapper(plain), *never),
        calm=ours('calm', recipe.precision, *wrapper(plain[2:]), *never),
        faulty=theirs('faulty', *wrapper(guarded), *HOOKS, *strike, *own_loop),
        left_out=ours(
            *('left_out', recipe.precision, *wrapper(guarded[2:])),
            *loop(recipe, leave_out=STRUCK),
        ),
        full=ours(
            *('full', 'full', *wrapper(guarded), *strike, *own_loop),
            'default_hooks.dump.save_weights=True',
            # As many as it takes; they are slow.
            'default_hooks.dump.max_dumps=1',
            'default_hooks.autopsy.max_autopsies=2',
        ),
        replay=[
            *(TOOLS / 'replay.py', folder / f'{name}-full' / DUMP),
            *('--device', 'cpu', '--allow-pickle'),
        ],
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


def launch(group, runs):
    job = dict(
        imports=[
            *map('.'.join, itertools.product(GROUPS[group][1], PARTS)),
            *('matplotlib.figure', 'matplotlib.backends.backend_agg', 'toys'),
        ],
        runs={name: list(map(str, runs[name])) for name in runs},
    )
    return run_job('test_runs/launch_job.py', stdin=json.dumps(job))


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
    """Return all of a run's last checkpoint that training resumes from:
    weights, buffers, averages, optimizer, schedules.
    """
    last = (work_dir / 'last_checkpoint').read_text()
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint['meta']['iter'] == NUM_ITERS
    kept = {
        key: checkpoint[key]
        for key in ('state_dict', 'ema_state_dict', 'param_schedulers')
        if key in checkpoint
    }
    for key in ('state', 'param_groups'):
        kept[key] = checkpoint['optimizer'][key]
    return dict(leaves(kept))


def differences(left, right):
    assert left.keys() == right.keys()
    return [name for name in left if not is_same(left[name], right[name])]


def is_same(left, right):
    if not isinstance(left, torch.Tensor):
        return left == right
    left, right = (
        tensor.flatten().contiguous().view(torch.uint8)
        for tensor in (left, right)
    )
    return torch.equal(left, right)
