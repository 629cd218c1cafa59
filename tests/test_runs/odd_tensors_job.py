"""Runs of models and batches with all kinds of tensors, in a process apart.

Usage: odd_tensors_job.py ROLE CHANGE FOLDER
"""

import sys
import tempfile

import torch
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS
from mmengine.structures import BaseDataElement
from odd_tensors import CONSTANT, KINDS, LAZY, UNSAVABLE
from torch import nn
from torch.utils.data import Dataset
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.hooks.recovery.earlier_state import present_state
from mmnanguard.numerics.checkpoints.checkpoint_file import scan_file

BAD = (1, 4)  # iterations
MAX_ITERS = 6


class Net(BaseModel):
    def __init__(self, change):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.change = change
        self.odd = nn.Module()

    def hold(self, role):
        for kind, make in KINDS.items():
            if role == 'buffers':
                is_kept = kind not in UNSAVABLE
                self.odd.register_buffer(kind, make(), is_kept)
            elif role == 'parameters' and kind not in UNSAVABLE:
                param = nn.Parameter(make(), requires_grad=False)
                self.odd.register_parameter(kind, param)
        if role == 'parameters':
            for kind, make in LAZY.items():
                self.odd.register_buffer(kind, make(), False)

    def init_weights(self):
        """Nothing: MMEngine's own takes the mean of each parameter."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        loss = self.fc(torch.stack(inputs)).square().mean()
        with torch.no_grad():
            for registry in (self.odd._buffers, self.odd._parameters):
                for kind, tensor in list(registry.items()):
                    if kind in KINDS and tensor is not None:
                        self.change_tensor(registry, kind, tensor)
        return dict(loss=loss)

    def change_tensor(self, registry, kind, tensor):
        new = KINDS[kind]()
        if registry is self.odd._parameters:
            new = nn.Parameter(new, requires_grad=False)
        if self.change == 'replace':
            registry[kind] = new
        elif self.change == 'resize' and registry is self.odd._buffers:
            registry[kind] = torch.ones(5)
        elif self.change == 'drop' and registry is self.odd._buffers:
            registry[kind] = None
        elif self.change == 'write' and kind not in CONSTANT:
            tensor.copy_(new)


@OPTIMIZERS.register_module()
class OddSGD(torch.optim.SGD):
    """Keeps tensors of all kinds in its state, groups and attributes."""

    def step(self, closure=None):
        super().step(closure)
        group = self.param_groups[0]
        state = self.state[group['params'][0]]
        self.odd = {}
        for kind, make in {**KINDS, **LAZY}.items():
            state[kind] = self.odd[kind] = make()
            state[f'{kind}, deeper'] = [make(), {'': make()}]
            group[kind] = make()


class Data(Dataset):
    """Samples that are made when they are asked for.

    MMEngine copies a list of samples, which fails for some of the tensors.
    """

    def __init__(self, role):
        self.role = role

    def __len__(self):
        return 2 * MAX_ITERS

    def __getitem__(self, index):
        inputs = torch.full((4,), 0.1 * index)
        if index // 2 + 1 in BAD:
            inputs[1] = float('nan')
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        if self.role == 'batch':
            sample.odd = {kind: make() for kind, make in KINDS.items()}
            sample.lazy = {kind: make() for kind, make in LAZY.items()}
        return dict(inputs=inputs, data_samples=sample)


def run(role, change, work_dir, is_guarded):
    torch.manual_seed(0)
    # No file can hold all kinds.
    hooks = dict(checkpoint=None)
    if role != 'optimizer':
        hooks['checkpoint'] = dict(
            type='CheckpointHook', interval=3, by_epoch=False
        )
    optimizer = 'OddSGD' if role == 'optimizer' else 'SGD'
    optim_wrapper = wrapper('OptimWrapper', optimizer=optimizer)
    if is_guarded:
        hooks.update(guard_hooks())
        for name in ('Autopsy', 'InputGuard', 'StateAudit', 'Rollback'):
            hooks[name] = dict(type=f'mmnanguard.{name}Hook')
        hooks['dump'] = dict(
            type='mmnanguard.BatchDumpHook', save_weights=True
        )
        optim_wrapper = wrapper(
            optimizer=optimizer,
            guard=dict(when_exhausted='rollback', max_consecutive_skips=5),
        )
    runner = make_runner(
        work_dir,
        optim_wrapper,
        model=Net(change),
        default_hooks=hooks,
        max_iters=MAX_ITERS,
        leave_out=() if is_guarded else BAD,
        train_dataloader=dict(
            dataset=Data(role),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
        ),
    )
    # Now, because model.to(device) of MMEngine fails for some of them.
    runner.model.hold(role)
    runner.train()
    return runner


def main(role, change, work_dir):
    guarded = run(role, change, work_dir, True)
    plain = run(role, change, tempfile.mkdtemp(), False)
    assert torch.equal(guarded.model.fc.weight, plain.model.fc.weight)
    # A rollback keeps such a copy, and a scan reads the checkpoints.
    kept = present_state(guarded, MAX_ITERS)
    guarded.optim_wrapper.optimizer.step()
    kept.restore(guarded)
    assert torch.equal(guarded.model.fc.weight, plain.model.fc.weight)
    if role == 'optimizer':
        print('equal')
        return
    for path in guarded.work_dir, plain.work_dir:
        scan_file(f'{path}/iter_3.pth')
    print('equal')


if __name__ == '__main__':
    main(*sys.argv[1:])
