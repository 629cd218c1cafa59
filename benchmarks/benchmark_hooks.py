"""Measure the cost of each hook or rule in an iteration without faults.

An iteration is hooks, ``train_step``, hooks, as in MMEngine's loop; loading
the batch does not count. Each row is a separate Runner, all with the same
weights and batches. They take turns in random order and are compared within a
round. A hook is alone with the guard; EventLogHook needs NanGuardHook. Work
that a hook does at an interval is done in each iteration here, so that its
price is visible. Milliseconds rise above the noise with ``--model small
--repeat 300``. A read is a moment at which Python waits for numbers from the
device. ``peak_mb`` are the tensors of an iteration beyond those that it begins
with, ``resnet50`` and ``vit-b`` are mmpretrain's if it imports.

Example:
    python benchmarks/benchmark_hooks.py --threads 1 --json hooks.json
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

import numpy as np
import torch
from benchmark import (
    HostReads,
    describe_machine,
    peak_bytes,
    record,
    save,
    show,
)
from mmengine.device import get_device
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from whole_models import PARTS, build_model

# The guard and its hooks compare tensors and batches in the first three.
NUM_WARM_UPS = 6
NAN_GUARD = dict(type='mmnanguard.NanGuardHook')
EVENT_LOG = dict(type='mmnanguard.EventLogHook')
AUTOPSY = dict(type='mmnanguard.AutopsyHook')
BATCH_DUMP = dict(type='mmnanguard.BatchDumpHook')
REJECT = dict(type='mmnanguard.InputGuardHook', action='reject')
SANITIZE = dict(type='mmnanguard.InputGuardHook', action='sanitize')
# In float32 it has nothing to cast, but it checks.
FP32 = dict(
    type='mmnanguard.Fp32ModulesHook', modules=[r're:backbone\.(0|conv1)']
)
MONITOR = dict(type='mmnanguard.StabilityMonitorHook', interval=1)
# In the iterations between two samples.
NO_SAMPLE = dict(type='mmnanguard.StabilityMonitorHook', interval=10**9)
AUDIT = dict(type='mmnanguard.StateAuditHook', interval=1)
ROLLBACK = dict(type='mmnanguard.RollbackHook', interval=1)
SPIKE = dict(spike=dict(window=128, warmup=2, action='skip'))
BACKOFF = dict(lr_backoff=dict(above=1e6))
BACK = dict(when_exhausted='rollback')
MICRO_BATCH = dict(accumulation='microbatch')


class Side(NamedTuple):
    """The hooks, the guard's policy and the clip rule of a row."""

    hooks: Sequence[dict] = ()
    guard: Optional[dict] = None
    clip: Optional[dict] = None


PLAIN = "MMEngine's wrapper"
SIDES = {
    PLAIN: Side(),
    'guard alone': Side(),
    'NanGuardHook': Side([NAN_GUARD]),
    'NanGuardHook, EventLogHook': Side([NAN_GUARD, EVENT_LOG]),
    'AutopsyHook': Side([AUTOPSY]),
    'BatchDumpHook': Side([BATCH_DUMP]),
    'NanGuardHook, InputGuardHook': Side([NAN_GUARD, REJECT]),
    'InputGuardHook, sanitize': Side([SANITIZE]),
    'Fp32ModulesHook': Side([FP32]),
    'these six': Side(
        [NAN_GUARD, EVENT_LOG, AUTOPSY, BATCH_DUMP, REJECT, FP32]
    ),
    'StateAuditHook, each iteration': Side([AUDIT]),
    'RollbackHook, each iteration': Side([NAN_GUARD, ROLLBACK], BACK),
    'StabilityMonitorHook, each iteration': Side([MONITOR]),
    'StabilityMonitorHook, no sample': Side([NO_SAMPLE]),
    'guard.spike': Side(guard=SPIKE),
    'guard.lr_backoff': Side(guard=BACKOFF),
    "guard.accumulation='microbatch'": Side(guard=MICRO_BATCH),
    'clip_grad, max_norm': Side(clip=dict(max_norm=35.0)),
    'TieredClip': Side(clip=dict(type='TieredClip', tiers=[(0, 35.0)])),
    'AutoClip': Side(clip=dict(type='AutoClip', percentile=10)),
    'ZClip': Side(clip=dict(type='ZClip')),
    'AdaptiveGradClip': Side(clip=dict(type='AdaptiveGradClip')),
}
PIXELS = dict(mean=[127.5] * 3, std=[127.5] * 3)
MMPRETRAIN = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor', num_classes=10, **PIXELS
    ),
    backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=512,
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
    ),
)
MODELS = {
    # The widths of a ResNet's blocks, or a config.
    'resnet18': [64, 64, 128, 128, 256, 256, 512, 512],
    'small': [8, 16],
    'mmpretrain': MMPRETRAIN,  # its ResNet-18 for CIFAR, if it imports
}


def conv_norm(inputs, outputs, size, stride):
    """Return a convolution and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        first = conv_norm(inputs, outputs, 3, stride)
        second = conv_norm(outputs, outputs, 3, 1)
        self.branch = nn.Sequential(*first, nn.ReLU(), *second)
        shortcut = conv_norm(inputs, outputs, 1, stride) if stride > 1 else ()
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, features):
        """Return features of shape (N, outputs, H / stride, W / stride)."""
        return F.relu(self.branch(features) + self.shortcut(features))


class ResNet(BaseModel):
    """A ResNet for small images: a stem of 3 x 3, stride 1 and no pooling."""

    def __init__(self, widths):
        super().__init__(dict(type='ImgDataPreprocessor', **PIXELS))
        layers, inputs = [*conv_norm(3, widths[0], 3, 1), nn.ReLU()], widths[0]
        for width in widths:
            layers.append(Block(inputs, width, 1 + (width > inputs)))
            inputs = width
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 10)

    def forward(self, inputs, data_samples, mode):
        """Return the loss of images of shape (N, 3, H, W)."""
        scores = self.head(self.backbone(inputs).mean((2, 3)))
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=F.cross_entropy(scores, labels.to(scores.device)))


class Images(Dataset):
    """A dataset of noise, packed as mm pipelines pack images."""

    def __init__(self, num_images, size, sample_type=BaseDataElement):
        self.sample_type = sample_type
        self.images = torch.randint(0, 256, (num_images, 3, size, size))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].byte()
        path, label = f'images/{index:06d}.jpg', torch.tensor([index % 10])
        about = dict(img_path=path, img_shape=tuple(image.shape[1:]))
        sample = self.sample_type(metainfo=about, gt_label=label)
        return dict(inputs=image, data_samples=sample)


class SteppedLoop(IterBasedTrainLoop):
    """A loop whose ``run_iter`` the benchmark calls."""

    def run(self):
        """Prepare training as MMEngine's loop does, without iterating."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()


def make_side(name, args, dataset, folder):
    """Return the runner of a side, which is ready to iterate."""
    side, model = SIDES[name], MODELS.get(args.model)
    if model is None:
        torch.manual_seed(0)
        model, *_ = build_model(args.model, args.image_size)
        model.data_preprocessor = ImgDataPreprocessor(**PIXELS)
    if isinstance(model, list):
        model = dict(type=ResNet, widths=model)
    wrapper = dict(type='OptimWrapper', clip_grad=side.clip)
    if name != PLAIN:
        wrapper.update(
            type='mmnanguard.NanGuardOptimWrapper', guard=side.guard
        )
    hooks = [dict(hook) for hook in side.hooks]
    where = f'{folder}/{name}'
    return make_runner(model, wrapper, hooks, dataset, args.batch_size, where)


def make_runner(model, wrapper, hooks, dataset, batch_size, folder):
    """Return a runner that is ready to train its first batch."""
    sgd = dict(type='SGD', lr=1e-9, momentum=0.9)
    sampler = dict(type='InfiniteSampler', seed=0)
    runner = Runner(
        model=model,
        work_dir=folder,
        train_dataloader=dict(
            dataset=dataset, sampler=sampler, batch_size=batch_size
        ),
        train_cfg=dict(type=SteppedLoop, max_iters=10**6),
        optim_wrapper=dict(wrapper, optimizer=sgd),
        default_hooks=dict(checkpoint=None),
        custom_hooks=hooks,
        experiment_name=Path(folder).name,
        log_processor=dict(by_epoch=False),
        log_level='ERROR',
        randomness=dict(seed=0),
    )
    runner.train()
    return runner


def measure(runners, repeat, clock=time.perf_counter, wait=lambda: None):
    """Return milliseconds of iterations, of shape (repeat, runners).

    Args:
        runners: The runners, which take turns in random order.
        repeat: Number of rounds.
        clock: Returns the time in seconds.
        wait: Waits for the device.
    """
    times = np.empty((NUM_WARM_UPS + repeat, len(runners)))
    for row in track(times, 'rounds', console=Console(stderr=True)):
        for index in random.sample(range(len(runners)), len(runners)):
            loop = runners[index].train_loop
            batch = next(loop.dataloader_iterator)
            wait()
            start = clock()
            loop.run_iter(batch)
            wait()
            row[index] = 1e3 * (clock() - start)
    return times[NUM_WARM_UPS:]


def count_reads(runner):
    """Count the host reads of the next iteration."""
    batch = next(runner.train_loop.dataloader_iterator)
    with HostReads() as reads:
        runner.train_loop.run_iter(batch)
    return reads.count


def measure_peak(runner, device):
    """Return the most bytes that the next iteration holds beyond its first."""
    batch = next(runner.train_loop.dataloader_iterator)
    with record(device) as profiler:
        runner.train_loop.run_iter(batch)
    return peak_bytes(profiler, device)


def make_rows(names, times, reads, peaks):
    """Yield a row of the table for each runner.

    Args:
        names: The names of the rows.
        times: Milliseconds, of shape (rounds, rows).
        reads: The host reads of an iteration, by row.
        peaks: The bytes of an iteration at its peak, by row.
    """
    plain, guard = times.T[:2]
    for name, spent, num_reads, peak in zip(names, times.T, reads, peaks):
        row = dict(ms=np.median(spent), more_ms=np.median(spent - guard))
        for key, other in (('to_mmengine', plain), ('to_guard', guard)):
            # Only times of the same round are compared: the load of the
            # machine changes from round to round.
            ratios = np.percentile(spent / other, (50, 10, 90))
            row.update(zip((key, f'{key}_p10', f'{key}_p90'), ratios))
        row = {key: round(number, 3) for key, number in row.items()}
        peak_mb = round(peak / 1e6, 2)
        yield dict(hooks=name, **row, reads=num_reads, peak_mb=peak_mb)


def main(argv=None):
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--model', choices=[*MODELS, *PARTS], default='resnet18')
    add('--hooks', nargs='+', choices=SIDES, default=[*SIDES], metavar='ROW')
    add('--batch-size', type=int, default=8)
    add('--image-size', type=int, default=32)
    add('--repeat', type=int, default=30)
    add('--threads', type=int, default=1)
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, num, size = get_device(), args.batch_size, args.image_size
    # The first two are always there: the others are compared with them.
    names = [*dict.fromkeys([*SIDES][:2] + args.hooks)]
    sample_type, source = BaseDataElement, args.model
    if args.model == 'mmpretrain':
        from mmpretrain.structures import DataSample as sample_type
    elif args.model in PARTS:
        _, sample_type, owner = build_model(args.model, size)
        source += f' ({owner})'
    dataset = Images(4 * num, size, sample_type)
    with tempfile.TemporaryDirectory() as folder:
        runners = [make_side(name, args, dataset, folder) for name in names]
        clock, wait = time.perf_counter, torch.cuda.synchronize
        if device == 'cpu':
            wait = int  # does nothing
        if device == 'cpu' and args.threads == 1:
            # It leaves out the time of other processes on the machine.
            clock = time.thread_time
        times = measure(runners, args.repeat, clock, wait)
        reads = [*map(count_reads, runners)]
        peaks = [measure_peak(runner, device) for runner in runners]
        rows = [*make_rows(names, times, reads, peaks)]
    machine = describe_machine(device, cpu_note='no GPU')
    machine += f', {source}, {num} images of {size} x {size}'
    machine += f', {clock.__name__}'
    show(machine, rows, args.markdown)
    save(machine, rows, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
