"""Trainings that are killed at random moments and resumed until they end.

Each must leave what the uninterrupted one leaves, bit for bit, and its rows
must read the same::

    python tests/campaign_kill.py --runs 50

A training is a fork of this process, which has imported all it needs: killed
are moments of training, not of start-up. Every third kill is aimed: at a
moment at which a file is being written.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset
from toys import (
    BATCH_SIZE,
    everything,
    guard_hooks,
    low_precision,
    make_data,
    make_runner,
)
from toys import wrapper as toy_wrapper

from mmnanguard.hooks import choose_resume
from mmnanguard.numerics.checkpoints.checkpoint_file import scan_file
from mmnanguard.report import read_events
from mmnanguard.safe_load import allow_mmengine_checkpoints

NUM_ITERS = 48
EPOCH = 6  # iterations
SLEEP = 0.01  # seconds an iteration, about as long as the rest of it
DEADLINE = 900  # seconds, for a training that nobody kills
MAX_KILLS = 8  # of one training; after that it is left alone
# On both sides of a checkpoint, and in streaks that a checkpoint divides.
FAULTS = [
    dict(iter=3, site='grad', value='inf'),
    dict(iter=13, site='grad', value='nan'),
    dict(iter=18, site='loss', value='nan'),
    dict(iter=19, site='buffer', value='nan'),
    dict(iter=29, site='activation', value='nan', where='1'),
    dict(iter=36, site='loss', value='inf'),
    dict(iter=37, site='grad', value='inf', where='head'),
    dict(iter=44, site='grad', value='1e38'),
]
# By which an interrupted run's rows may differ; iterations are counted since
# the process started.
OWN_KEYS = ('id', 'run', 'attempt', 'time', 'num_iters')


@MODELS.register_module()
class CampaignNet(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(32 * 36, 64)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head(self.dropout(self.backbone(torch.stack(inputs))))
        if mode != 'loss':
            return ['']
        labels = torch.tensor([sample.label for sample in data_samples])
        return dict(loss=nn.functional.cross_entropy(logits, labels))


@DATASETS.register_module()
class AugmentedData(Dataset):
    """A dataset that draws from all three generators."""

    def __init__(self, size):
        self.items = make_data(size)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = dict(self.items[index])
        image = item['inputs'] * random.uniform(0.8, 1.2)
        if np.random.rand() < 0.5:
            image = image.flip(-1)
        item['inputs'] = image + 0.1 * torch.randn(3, 1, 1)
        return item


class TakeTime(Hook):
    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        time.sleep(SLEEP)


def train(work_dir, by_epoch, num_workers):
    """Train to the end, from the last checkpoint if there is one."""
    hooks = guard_hooks(*FAULTS)
    hooks['nan_guard']['save_rng'] = True
    hooks['audit'] = dict(type='mmnanguard.StateAuditHook', interval=5)
    hooks['checkpoint'] = dict(
        type='CheckpointHook',
        by_epoch=by_epoch,
        interval=1 if by_epoch else EPOCH,
        max_keep_ckpts=2,
    )
    loop = dict(type='IterBasedTrainLoop', max_iters=NUM_ITERS, val_interval=9)
    if by_epoch:
        loop = dict(type='EpochBasedTrainLoop', max_epochs=NUM_ITERS // EPOCH)
    loader = dict(
        dataset=dict(type='AugmentedData', size=EPOCH * BATCH_SIZE),
        # MMEngine sleeps for 2 seconds where a loop of iterations begins
        # another sampler.
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
    )
    val_loader = dict(
        dataset=loader['dataset'],
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=BATCH_SIZE,
    )
    ema = EMAHook(momentum=0.05)
    runner = make_runner(
        work_dir,
        toy_wrapper(
            'NanGuardAmpOptimWrapper',
            optimizer='AdamW',
            lr=0.01,
            **low_precision(dict(init_scale=1024, growth_interval=6)),
            clip_grad=dict(type='ZClip', warmup=4, max_norm=None),
            guard=dict(
                proven_after=4,
                spike=dict(window=12, threshold=3, action='clip'),
            ),
        ),
        model=dict(type='CampaignNet'),
        param_scheduler=dict(
            type='LinearLR', by_epoch=False, start_factor=0.1, end=NUM_ITERS
        ),
        train_cfg=loop,
        train_dataloader=loader,
        val_dataloader=val_loader,
        val_cfg=dict(),
        val_evaluator=[],
        default_hooks=hooks,
        custom_hooks=[ema, TakeTime()],
        resume=True,
    )
    runner.train()
    return dict(
        tensors=everything(runner),
        averages=dict(ema.ema_model.state_dict()),
        scaler=runner.optim_wrapper.loss_scaler.state_dict(),
        schedulers=[
            scheduler.state_dict() for scheduler in runner.param_schedulers
        ],
        guard={
            key: value
            for key, value in runner.optim_wrapper.guard.state_dict().items()
            if key not in OWN_KEYS
        },
    )


def fork(work_dir, kind):
    """Fork a training; at its end it writes 'end.pt'."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(work_dir / 'output.txt', 'a') as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        end = train(work_dir / 'run', *kind)
        torch.save(end, work_dir / 'end.partial')
        os.replace(work_dir / 'end.partial', work_dir / 'end.pt')
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child, seconds, until=lambda: False):
    """Return the child's exit status, or None if it has not ended in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return exit_status(status)
        time.sleep(0.0002)
    return None


def exit_status(status):
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def half_done(folder, known=()):
    """Return the names of files that were half written at the kill."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {
        name
        for name in names
        if name.endswith('.partial') or name.startswith('.')
    }.difference(known)


def uninterrupted(work_dir, kind):
    """Train without a kill; return the end of the run, its rows and the
    seconds that it took.
    """
    work_dir.mkdir(parents=True)
    began = time.monotonic()
    child = fork(work_dir, kind)
    status = wait(child, DEADLINE)
    seconds = time.monotonic() - began
    if status is None:
        os.kill(child, signal.SIGKILL)
    if status != 0:
        raise RuntimeError((work_dir / 'output.txt').read_text()[-3000:])
    return end_of(work_dir), rows_of(work_dir), seconds


def interrupted(work_dir, kind, seconds, rng):
    """Kill and resume; return the number of kills and a list of faults."""
    work_dir.mkdir(parents=True)
    folder = work_dir / 'run'
    for num_kills in itertools.count():
        left = half_done(folder)
        child = fork(work_dir, kind)
        if num_kills == MAX_KILLS:
            status = wait(child, DEADLINE)
        else:
            status = wait(child, rng.uniform(0, seconds))
            if status is None and rng.random() < 1 / 3:
                status = wait(child, seconds, partial(half_done, folder, left))
        if status == 0:
            return num_kills, []
        if status is None:
            os.kill(child, signal.SIGKILL)
            # It may have come to its end just before.
            status = exit_status(os.waitpid(child, 0)[1])
            if status == 0:
                return num_kills, []
        if status != -signal.SIGKILL:
            output = (work_dir / 'output.txt').read_text().splitlines()
            return num_kills, [f'ends with {status}: {output[-1]}']
        wrong = half_written(folder)
        if wrong:
            return num_kills + 1, wrong
    raise AssertionError


def half_written(folder):
    """Return descriptions of the broken files that a kill has left."""
    wrong = [
        f'{path.name} is {scan_file(path).status}'
        for path in folder.glob('*.pth')
        if scan_file(path).status != 'read'
    ]
    last = folder / 'last_checkpoint'
    if last.exists() and not Path(last.read_text()).is_file():
        wrong.append(f'last_checkpoint names {last.read_text()!r}')
    chosen = choose_resume(str(folder))
    if chosen != (None, ''):
        wrong.append(f'resumes by choice: {chosen}')
    return wrong


def end_of(work_dir):
    return torch.load(work_dir / 'end.pt', weights_only=False)


def rows_of(work_dir):
    rows = []
    for row in read_events(str(work_dir / 'run')):
        if row['kind'] == 'start':
            continue
        row = {key: row[key] for key in row if key not in OWN_KEYS}
        # The counts are those of a process, the names are not.
        row['bad_losses'] = sorted(row.get('bad_losses', ()))
        # A process that is killed after its last row is resumed, and ends
        # once more.
        if rows and rows[-1]['kind'] == row['kind'] == 'end':
            rows.pop()
        rows.append(row)
    return rows


def differences(left, right, where=''):
    """Return the names of the values that differ in any bit."""
    if type(left) is not type(right):
        return [f'{where} ({type(left).__name__}, {type(right).__name__})']
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and torch.equal(
            left.flatten().contiguous().view(torch.uint8),
            right.flatten().contiguous().view(torch.uint8),
        )
        return [] if same else [where]
    if isinstance(left, (list, tuple)):
        left, right = dict(enumerate(left)), dict(enumerate(right))
    if isinstance(left, dict):
        names = []
        for key in {**left, **right}:
            if key in left and key in right:
                names += differences(left[key], right[key], f'{where}/{key}')
            else:
                names.append(f'{where}/{key} (only one has it)')
        return names
    return [] if left == right else [f'{where}: {left!r}, {right!r}']


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--runs', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', help='also write the outcome here')
    parser.add_argument('--work-dir', help='keep all files here')
    args = parser.parse_args()
    allow_mmengine_checkpoints()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as aside:
        outcome = campaign(Path(args.work_dir or aside), args.runs, args.seed)
    equal = sum(not run['wrong'] for run in outcome)
    kills = sum(run['kills'] for run in outcome)
    print(f'{equal} of {args.runs} equal the uninterrupted run, {kills} kills')
    if args.json:
        Path(args.json).write_text(json.dumps(outcome, indent=1))
    return 0 if equal == args.runs else 1


def campaign(folder, num_runs, seed):
    outcome, wholes = [], {}
    kinds = list(itertools.product((False, True), (0, 2)))
    for number in range(num_runs):
        kind = kinds[number % len(kinds)]
        if kind not in wholes:
            name = f'whole_{kinds.index(kind)}'
            wholes[kind] = uninterrupted(folder / name, kind)
        end, rows, seconds = wholes[kind]
        began = time.monotonic()
        work_dir = folder / f'run_{number}'
        rng = random.Random(f'{seed} {number}')
        kills, wrong = interrupted(work_dir, kind, seconds, rng)
        if not wrong:
            wrong = differences(end, end_of(work_dir))
            wrong += differences(rows, rows_of(work_dir), 'rows')
        outcome.append(
            dict(
                run=number,
                loop='epochs' if kind[0] else 'iterations',
                workers=kind[1],
                kills=kills,
                seconds=round(time.monotonic() - began, 1),
                wrong=wrong,
            )
        )
        print(
            ', '.join(f'{k} {v}' for k, v in outcome[-1].items() if v != []),
            flush=True,
        )
    return outcome


if __name__ == '__main__':
    sys.exit(main())
