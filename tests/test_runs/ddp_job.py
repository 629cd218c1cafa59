"""One rank that runs one situation after another under DDP over gloo.

The results of each situation go to a file.
"""

import json
import math
import sys
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import distributed as dist
from torch import nn
from toys import (
    BATCH_SIZE,
    ToyNet,
    guard_hooks,
    loader,
    low_precision,
    make_data,
    make_runner,
    wrapper,
)

from mmnanguard.core import TrainingHalted


@MODELS.register_module()
class ExtraNet(ToyNet):
    """A model with a parameter that only some ranks use."""

    def __init__(self, ranks, is_reduced):
        super().__init__()
        self.head = ExtraHead(dist.get_rank() in ranks)
        if not is_reduced:
            self._ddp_params_and_buffers_to_ignore = ['head.extra']


class ExtraHead(nn.Linear):
    def __init__(self, is_used):
        super().__init__(4, 2)
        self.extra = nn.Parameter(torch.zeros(2))
        self.is_used = is_used

    def forward(self, features):
        logits = super().forward(features)
        return logits + self.extra if self.is_used else logits


class Spoil(Hook):
    """Apply the faults of this rank at a few iterations."""

    def __init__(self, faults, iters):
        self.sites = [site for site, rank in faults if rank == dist.get_rank()]
        self.iters = iters

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.sites or runner.iter + 1 not in self.iters:
            return
        wrapper = runner.optim_wrapper
        backward = type(wrapper).backward
        net = runner.model.module
        last = list(net.parameters())[-1]
        if 'input' in self.sites:
            wrapper.add_fact('input', torch.tensor(True))
        if 'weight' in self.sites:
            last.data[0] = math.nan

        def spoilt(loss):
            if 'loss' in self.sites:  # the gradients stay finite
                loss = loss + math.nan
            if 'backward' in self.sites:
                loss = loss * math.nan
            if 'spread' in self.sites:  # the loss stays finite
                hook = last.register_hook(lambda grad: grad * math.nan)
            backward(wrapper, loss)
            if 'spread' in self.sites:
                hook.remove()
            if 'grad' in self.sites:  # after the reduction
                last.grad[0] = math.inf
            if 'buffer' in self.sites:
                net.backbone[1].running_var[0] = math.inf

        wrapper.backward = spoilt

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        vars(runner.optim_wrapper).pop('backward', None)


class Watch(Hook):
    """Keep the norm of each committed update: this rank's own and the logged
    one.
    """

    def __init__(self, norm_type):
        self.norm_type = norm_type
        self.norms = []

    def before_train(self, runner):
        wrapper = runner.optim_wrapper

        def watched(**kwargs):
            num_steps = wrapper.guard.state.num_steps
            params = runner.model.parameters()
            grads = [param.grad for param in params if param.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            local_norm = flat.norm(self.norm_type).item()
            local_norm /= wrapper.loss_scaler.get_scale()
            type(wrapper).step(wrapper, **kwargs)
            if wrapper.guard.state.num_steps > num_steps:
                logged = runner.message_hub.get_scalar('train/grad_norm')
                self.norms.append((local_norm, float(logged.current())))

        wrapper.step = watched


def everything(runner):
    """Return all tensors, those of the optimizer by names of parameters."""
    net = runner.model.module
    tensors = dict(net.state_dict())
    for name, param in net.named_parameters():
        for key, value in runner.optim_wrapper.optimizer.state[param].items():
            tensors[f'{name} {key}'] = torch.as_tensor(value)
    return tensors


def run(
    work_dir,
    faults=(),
    iters=(),
    leave_out=(),
    model=None,
    ddp=None,
    accumulation=1,
    norm_type=2,
    loss_scale=None,
    limit=20,
    max_iters=8,
):
    watch = Watch(norm_type)
    runner = make_runner(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper',
            optimizer='AdamW',
            lr=0.01,
            **low_precision(loss_scale or dict(init_scale=64, min_scale=64)),
            accumulative_counts=accumulation,
            clip_grad=dict(max_norm=0.1, norm_type=norm_type),
            guard=dict(max_consecutive_skips=limit, proven_after=0),
        ),
        model=model or dict(type='ToyNet'),
        default_hooks=guard_hooks(),
        custom_hooks=[Spoil(faults, iters), watch],
        leave_out=leave_out,
        max_iters=max_iters,
        # Enough for all: MMEngine sleeps 2 s before it goes through it again.
        train_dataloader=loader(
            make_data(max_iters * BATCH_SIZE * dist.get_world_size())
        ),
        launcher='pytorch',
        experiment_name=work_dir.name,
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                **{'broadcast_buffers': False, **(ddp or {})},
            )
        ),
    )
    halted = ''
    try:
        runner.train()
    except TrainingHalted as error:
        halted = str(error)
    return dict(
        tensors=everything(runner),
        norms=watch.norms,
        scale=runner.optim_wrapper.loss_scaler.get_scale(),
        state=runner.optim_wrapper.guard.state.to_dict(),
        halted=halted,
    )


def main(path):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    path = Path(path)
    situations = json.loads((path / 'situations.json').read_text())
    for name, situation in situations.items():
        try:
            result = run(path / name, **situation)
        except RuntimeError as error:
            raise RuntimeError(f'in the situation {name!r}') from error
        torch.save(result, path / name / f'rank_{dist.get_rank()}.pt')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
