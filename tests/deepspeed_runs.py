"""Runs of FlexibleRunner with MMEngine's DeepSpeedStrategy."""

import deepspeed_engine
import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from torch import nn
from toys import guard_hooks, make_data, runner_config


@MODELS.register_module()
class EngineNet(BaseModel):
    """A model that runs in the precision of its weights."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(192, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)
        self.register_buffer('mean', torch.zeros(8))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(list(inputs)).flatten(1)
        features = self.norm(self.body(inputs.to(self.body.weight.dtype)))
        if self.training:
            mean = features.detach().float().mean(0)
            self.mean.mul_(0.9).add_(0.1 * mean)
        logits = self.head(features.relu()).float()
        labels = torch.tensor([s.label for s in data_samples])
        return dict(loss=nn.functional.cross_entropy(logits, labels))


def make_runner(
    work_dir,
    kind,
    max_iters=8,
    faults=(),
    is_guarded=True,
    hooks=(),
    leave_out=(),
    **changes,
):
    """Return a runner of two ranks, each with its own half of the data."""
    optimizer = dict(
        sgd=dict(type='SGD', lr=0.05, momentum=0.9),
        adamw=dict(type='AdamW', lr=0.01),
    )[kind.optimizer]
    name = 'DeepSpeedOptimWrapper'
    guard = {}
    if is_guarded:
        name = 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
        guard = dict(guard=dict(proven_after=0))
    wrapper = dict(type=name, optimizer=optimizer, **guard)
    config = runner_config(
        work_dir,
        changes.pop('optim_wrapper', wrapper),
        max_iters=max_iters,
        leave_out=leave_out,
        model=dict(type='EngineNet'),
        train_dataloader=dict(
            dataset=make_data(8 * max(max_iters, 12)),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            num_workers=0,
        ),
        param_scheduler=dict(
            type='LinearLR', start_factor=0.5, end=12, by_epoch=False
        ),
        experiment_name=f'{work_dir.name}_{max_iters}_{len(changes)}',
        **changes,
    )
    config['default_hooks'].update(guard_hooks(*faults))
    config['default_hooks'].update(dict(hooks))
    strategy = deepspeed_engine.config_of(kind, is_guarded)
    strategy.pop('steps_per_print')
    torch.manual_seed(0)
    return FlexibleRunner(
        **config, strategy=dict(type='DeepSpeedStrategy', config=strategy)
    )


def everything(runner):
    """Return what a run keeps on this rank, by name."""
    wrapper = runner.optim_wrapper
    return deepspeed_engine.everything(wrapper)


def strike(iter, site='loss', value='nan', rank=1):
    """Return a fault on one rank; none on the others."""
    if get_rank() != rank:
        return []
    return [dict(iter=iter, site=site, value=value)]
