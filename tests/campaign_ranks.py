"""Faults on one of two ranks, with every way to share a model and all hooks.

Each must leave what the run without the struck windows leaves, bit for bit,
and all ranks at the same verdicts::

    python tests/campaign_ranks.py            # all cells: some 7 minutes
    python tests/campaign_ranks.py --every 24 # each 24th

A cell is a training of six windows, two of which are struck on one rank.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.model import (
    BaseModel,
    MMDistributedDataParallel,
    MMFullyShardedDataParallel,
)
from torch import distributed as dist
from torch import nn
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    low_precision,
    make_data,
    make_runner,
    read_rows,
)
from toys import wrapper as make_wrapper

from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

NUM_RANKS = 2
NUM_WINDOWS, STRUCK = 6, (2, 5)
SCALE = 64.0
OPTIMIZERS = {
    'sgd': dict(optimizer='SGD', lr=0.1),
    'adamw': dict(optimizer='AdamW', lr=0.01),
    'fused': dict(optimizer='AdamW', lr=0.01, optimizer_keys=dict(fused=True)),
}
WAYS = ('ddp', 'ddp, accumulation', 'fsdp1', 'fsdp2', 'talks in forward')
SITES = ('input', 'activation', 'loss', 'backward', 'grad', 'buffer')


class Cell(NamedTuple):
    way: str
    optimizer: str
    precision: str
    site: str
    value: str
    rank: int


if HAS_CPU_SCALER:
    USED_WAYS, USED_OPTIMIZERS = list(WAYS), list(OPTIMIZERS)
else:
    USED_WAYS = [way for way in WAYS if 'fsdp' not in way]
    USED_OPTIMIZERS = ['sgd', 'adamw']
CELLS = list(
    itertools.starmap(
        Cell,
        itertools.product(
            USED_WAYS,
            USED_OPTIMIZERS,
            ('fp32', 'fp16'),
            SITES,
            ('nan', 'inf'),
            range(NUM_RANKS),
        ),
    )
)


class Talk(torch.autograd.Function):
    """A mean over ranks, as SyncBN and mmdet's reduce_mean have it."""

    @staticmethod
    def forward(ctx, x):
        return Talk.mean(x)

    @staticmethod
    def backward(ctx, grad):
        return Talk.mean(grad)

    @staticmethod
    def mean(x):
        x = x / dist.get_world_size()
        dist.all_reduce(x)
        return x


class Net(BaseModel):
    """A model with sizes that two ranks can share evenly, and one size that
    they cannot.
    """

    def __init__(self, talks=False):
        super().__init__(dict(type='BaseDataPreprocessor'))
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.talks = talks

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.norm(self.conv(torch.stack(list(inputs)))).relu()
        if self.talks:
            features = features - Talk.apply(features.float().mean((0, 2, 3)))[
                :, None, None
            ].to(features.dtype)
        logits = self.head(features.mean((2, 3))).float()
        labels = torch.tensor([sample.label for sample in data_samples])
        return dict(loss=nn.functional.cross_entropy(logits, labels))


def share(way):
    """Wrap the model as the ranks share it."""
    torch.manual_seed(0)
    net = Net(talks=way == 'talks in forward')
    if way == 'fsdp1':
        return MMFullyShardedDataParallel(
            net, device_id=torch.device('cpu'), use_orig_params=True
        )
    if way == 'fsdp2':
        from torch.distributed.fsdp import fully_shard

        fully_shard(net.head)
        return fully_shard(net)
    return MMDistributedDataParallel(net, broadcast_buffers=False)


class Strike(Hook):
    """Spoil one number of this rank in the middle of some windows."""

    priority = 'VERY_HIGH'  # over before an autopsy runs the batch again

    def __init__(self, cell, length):
        self.site, self.value = cell.site, float(cell.value)
        # Before the last one ranks have not shared their gradients.
        before_end = 0 if cell.site == 'grad' else length - 1
        self.iters = [window * length - before_end for window in STRUCK]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.undo = []
        if runner.iter + 1 not in self.iters:
            return
        net = getattr(runner.model, 'module', runner.model)
        if self.site == 'input':
            data_batch['inputs'][1][0, 0, 0] = self.value
        elif self.site == 'activation':
            hook = net.norm.register_forward_hook(
                lambda module, inputs, output: output * self.value
            )
            self.undo.append(hook.remove)
        else:
            wrapper = runner.optim_wrapper
            wrapper.backward = lambda loss: self.backward(wrapper, net, loss)
            self.undo.append(lambda: delattr(wrapper, 'backward'))

    def backward(self, wrapper, net, loss):
        if self.site == 'loss':  # its gradient stays as it is
            loss = loss + self.value
        elif self.site == 'backward':
            loss = loss * self.value
        type(wrapper).backward(wrapper, loss)
        if self.site == 'grad':
            grads = [p.grad for p in net.parameters() if p.grad is not None]
            grad = next(local(g) for g in grads if local(g).numel())
            grad.view(-1)[0] = self.value
        elif self.site == 'buffer':
            net.norm.running_var[0] = self.value

    def after_train_iter(self, runner, *args, **kwargs):
        while self.undo:
            self.undo.pop()()


def train(work_dir, cell, is_struck):
    """Train one cell; if it is not to be struck, leave out the windows that
    the fault would have struck.
    """
    length = 2 if cell.way == 'ddp, accumulation' else 1
    hooks = dict(
        guard_hooks(),
        autopsy=dict(type='mmnanguard.AutopsyHook', max_autopsies=1),
        fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
        inputs=dict(type='mmnanguard.InputGuardHook'),
        dump=dict(type='mmnanguard.BatchDumpHook', max_dumps=1),
        audit=dict(type='mmnanguard.StateAuditHook', interval=3),
        rollback=dict(type='mmnanguard.RollbackHook', interval=2),
        checkpoint=None,
        logger=None,
    )
    keys = dict(
        OPTIMIZERS[cell.optimizer],
        accumulative_counts=length,
        clip_grad=dict(max_norm=0.5),
        guard=dict(proven_after=0),
    )
    if cell.precision == 'fp16':
        keys.update(
            type_='NanGuardAmpOptimWrapper',
            **low_precision(dict(init_scale=SCALE, min_scale=SCALE)),
        )
    max_iters = NUM_WINDOWS * length
    strikes = is_struck and cell.rank == dist.get_rank()
    leave_out = []
    for window in STRUCK:
        end = window * length
        leave_out += range(end - length + 1, end + 1)
    runner = make_runner(
        work_dir,
        make_wrapper(**keys),
        model=share(cell.way),
        default_hooks=hooks,
        custom_hooks=[Strike(cell, length)] if strikes else [],
        train_dataloader=loader(
            make_data(max_iters * BATCH_SIZE * dist.get_world_size())
        ),
        max_iters=max_iters,
        leave_out=() if is_struck else leave_out,
        log_level='ERROR',
    )
    # MMEngine's Runner would broadcast shards, which are each rank's own.
    runner._init_model_weights = lambda: None
    runner.train()
    return runner


def everything(runner):
    """Return this rank's part of all tensors."""
    tensors = dict(runner.model.named_parameters())
    tensors.update(runner.model.named_buffers())
    for index, state in enumerate(
        runner.optim_wrapper.optimizer.state.values()
    ):
        for key, value in state.items():
            tensors[f'{index} {key}'] = torch.as_tensor(value)
    return {k: local(v).detach().clone() for k, v in tensors.items()}


def look(work_dir, cell, oracles):
    """Return what is wrong with a cell on this rank; empty if all is well."""
    key = cell._replace(site='', value='', rank=0)
    if key not in oracles:
        oracle = everything(train(work_dir / 'oracle', cell, False))
        oracles[key] = oracle
    runner = train(work_dir / 'struck', cell, True)
    guard = runner.optim_wrapper.guard
    wrong = [
        f'{name} differs'
        for name, tensor in everything(runner).items()
        if not same(tensor, oracles[key][name])
    ]
    states = [guard.state.to_dict(), guard.scaler.get_scale()]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, states)
    if any(other != states for other in everyone):
        wrong.append('ranks have other states')
    if guard.state.total_skips != len(STRUCK):
        wrong.append(f'{guard.state.total_skips} skips')
    if dist.get_rank() == 0:
        rows = read_rows(runner)
        if len(rows) != len(STRUCK):
            wrong.append(f'{len(rows)} rows')
        if any(cell.rank not in row['ranks'] for row in rows):
            wrong.append(f'rows name {[row["ranks"] for row in rows]}')
    return wrong


def same(left, right):
    bits = [tensor.flatten().view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*bits)


def run_rank(outcome, cells):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    oracles, seen = {}, []
    for number, cell in enumerate(cells, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                wrong = look(Path(folder), cell, oracles)
            except Exception:
                # The other rank may wait for this one: nothing more to learn.
                sys.exit(f'{cell}: {traceback.format_exc()}')
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, wrong)
        seen.append([*cell, list(itertools.chain.from_iterable(everyone))])
        if dist.get_rank() == 0:
            bad = sum(bool(result[-1]) for result in seen)
            print(f'{number} of {len(cells)} cells, {bad} wrong', flush=True)
            if seen[-1][-1]:
                print(*seen[-1], flush=True)
    if dist.get_rank() == 0:
        Path(outcome).write_text(json.dumps(seen))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--every', type=int, default=1, help='n-th cell')
    parser.add_argument('--json', default=os.devnull, help='the outcome')
    args = parser.parse_args()
    if 'RANK' in os.environ:
        run_rank(args.json, CELLS[:: args.every])
        return 0
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command.append(f'--nproc_per_node={NUM_RANKS}')
    command += [str(Path(__file__).with_name('rank.py')), *sys.argv]
    return subprocess.run(command).returncode


if __name__ == '__main__':
    sys.exit(main())
