"""A resumed run equals the uninterrupted one, random draws included."""

import inspect
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.utils.data import Dataset
from toys import assert_same, guard_hooks, make_data, make_runner, wrapper


@MODELS.register_module()
class DropoutNet(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'loss':
            return ['']
        return dict(loss=self.net(torch.stack(list(inputs))).square().mean())


@DATASETS.register_module()
class NoisyData(Dataset):
    """A dataset that draws from all three generators for each item."""

    def __init__(self, size):
        self.items = make_data(size)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = dict(self.items[index])
        noise = random.random() + np.random.rand() + torch.rand(())
        item['inputs'] = item['inputs'] + noise
        return item


class DrawSomething(Hook):
    """Draw from the main process's generators, as hooks of a user may."""

    def __init__(self):
        self.drawn = []

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.drawn.append((random.random(), np.random.rand()))


def loader(num_workers, sampler='DefaultSampler', **changes):
    return dict(
        **changes,
        dataset=dict(type='NoisyData', size=16),
        sampler=dict(type=sampler, shuffle=True),
        batch_size=4,
        num_workers=num_workers,
    )


def train(
    work_dir,
    by_epoch,
    stop=8,
    save_rng=True,
    resume=False,
    fault=5,
    workers=2,
    is_persistent=False,
    sampler='DefaultSampler',
    **loop_options,
):
    hooks = guard_hooks(dict(iter=fault, site='loss'))
    hooks['nan_guard']['save_rng'] = save_rng
    hooks['checkpoint'] = dict(
        type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4
    )
    draw = DrawSomething()
    loop = dict(
        type='IterBasedTrainLoop',
        max_iters=stop,
        val_interval=2,
        **loop_options,
    )
    if by_epoch:
        loop = dict(type='EpochBasedTrainLoop', max_epochs=stop // 4)
    runner = make_runner(
        work_dir,
        wrapper('NanGuardOptimWrapper', lr=0.01),
        model=dict(type='DropoutNet'),
        train_cfg=loop,
        train_dataloader=loader(
            workers, sampler, persistent_workers=is_persistent
        ),
        val_dataloader=loader(0),
        val_cfg=dict(),
        val_evaluator=[],
        default_hooks=hooks,
        custom_hooks=[draw],
        resume=resume,
    )
    runner.train()
    return runner, draw.drawn


@pytest.mark.parametrize('by_epoch', [False, True], ids=['iters', 'epochs'])
@pytest.mark.parametrize(('fault', 'workers'), [(2, 2), (6, 2), (6, 0)])
def test_resume_equals_the_uninterrupted_run(
    tmp_path, by_epoch, fault, workers
):
    keys = dict(by_epoch=by_epoch, fault=fault, workers=workers)
    whole, drawn = train(tmp_path / 'whole', **keys)
    train(tmp_path / 'parts', stop=4, **keys)
    parts, drawn_later = train(tmp_path / 'parts', resume=True, **keys)
    assert_same(whole, parts)
    assert drawn[4:] == drawn_later
    assert parts.optim_wrapper.guard.state == whole.optim_wrapper.guard.state


@pytest.mark.parametrize('workers', [0, 2])
def test_a_sampler_without_end(tmp_path, workers):
    """A resume by onedl-mmengine can leave out past data, with the draws of
    workers.
    """
    keys = dict(by_epoch=False, workers=workers, sampler='InfiniteSampler')
    whole, drawn = train(tmp_path / 'whole', **keys)
    train(tmp_path / 'parts', stop=4, **keys)
    parts, drawn_later = train(tmp_path / 'parts', resume=True, **keys)
    assert_same(whole, parts)
    assert drawn[4:] == drawn_later


@pytest.mark.skipif(
    'fast_forward_on_resume'
    not in inspect.signature(IterBasedTrainLoop).parameters,
    reason='an option of onedl-mmengine',
)
def test_data_that_begins_anew(tmp_path):
    """The random state is that of the checkpoint from the first batch on."""
    keys = dict(by_epoch=False, workers=0, fast_forward_on_resume=True)
    _, drawn = train(tmp_path / 'whole', **keys)
    train(tmp_path / 'parts', stop=4, **keys)
    _, drawn_later = train(tmp_path / 'parts', resume=True, **keys)
    assert drawn[4:] == drawn_later


def test_mmengine_draws_anew(tmp_path):
    """The draws differ without the option, so the test above can fail."""
    _, drawn = train(tmp_path / 'whole', False, save_rng=False)
    train(tmp_path / 'parts', False, stop=4, save_rng=False)
    _, drawn_later = train(
        tmp_path / 'parts', False, save_rng=False, resume=True
    )
    assert drawn[4:] != drawn_later


@pytest.mark.parametrize('by_epoch', [False, True], ids=['iters', 'epochs'])
def test_persistent_workers(tmp_path, by_epoch):
    """The draws of persistent workers in a later epoch cannot be known."""
    keys = dict(by_epoch=by_epoch, is_persistent=True)
    whole, _ = train(tmp_path / 'whole', **keys)
    train(tmp_path / 'parts', stop=4, **keys)
    parts, _ = train(tmp_path / 'parts', resume=True, **keys)
    # Attempts that start within one second write to one file.
    logs = ''.join(path.read_text() for path in tmp_path.glob('*/*/*.log'))
    if not by_epoch:
        assert_same(whole, parts)
    else:
        with pytest.raises(AssertionError):
            assert_same(whole, parts)
    num_warnings = logs.count('workers that outlive an epoch')
    assert num_warnings == 3 * by_epoch
