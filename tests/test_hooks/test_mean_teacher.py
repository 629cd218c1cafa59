"""A teacher is as if a rejected window of its student had never been.

mmdet is not needed: a hook of the same name and behaviour stands in.
"""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from toys import (
    ToyNet,
    assert_same,
    everything,
    guard_hooks,
    make_runner,
    wrapper,
)


@MODELS.register_module()
class PairNet(BaseModel):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = ToyNet(), ToyNet()
        self.teacher.requires_grad_(False)

    def forward(self, *args, **kwargs):
        return self.student(*args, **kwargs)


class MeanTeacherHook(Hook):
    """A hook like mmdet's: parameters, or all floating tensors, follow the
    student.
    """

    def __init__(self, momentum=0.1, interval=1, skip_buffer=True):
        self.momentum, self.interval = momentum, interval
        self.skip_buffers = skip_buffer

    def before_train(self, runner):
        self.follow(runner.model, 1)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if self.every_n_train_iters(runner, self.interval):
            self.follow(runner.model, self.momentum)

    def follow(self, model, momentum):
        parts = []
        for net in (model.student, model.teacher):
            if self.skip_buffers:
                parts.append(dict(net.named_parameters()))
            else:
                parts.append(net.state_dict())
        for source, target in zip(*(part.values() for part in parts)):
            if target.is_floating_point():
                target.data.mul_(1 - momentum)
                target.data.add_(source.data, alpha=momentum)


def train(
    work_dir, accumulation=1, faults=(), leave_out=(), plain=False, **ema
):
    hooks = guard_hooks(*(dict(iter=number, site='loss') for number in faults))
    hook = MeanTeacherHook(**ema)
    left_out = hook.after_train_iter
    if leave_out:  # what the loop of the oracle calls all the same
        hook.after_train_iter = lambda runner, *args, **kwargs: (
            runner.iter + 1 in leave_out or left_out(runner, *args, **kwargs)
        )
    runner = make_runner(
        work_dir,
        wrapper(
            'OptimWrapper' if plain else 'NanGuardOptimWrapper',
            accumulative_counts=accumulation,
        ),
        model=dict(type='PairNet'),
        default_hooks={} if plain else hooks,
        custom_hooks=[hook],
        leave_out=leave_out,
        max_iters=12,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    'ema', [{}, dict(skip_buffer=False), dict(interval=3)], ids=str
)
def test_a_rejected_update_moves_no_teacher(tmp_path, ema):
    faulty = train(tmp_path, faults=(1, 6, 8), **ema)
    clean = train(tmp_path, leave_out=(1, 6, 8), **ema)
    assert_same(faulty, clean)
    moved = everything(faulty)
    assert not torch.equal(
        moved['teacher.head.weight'], moved['student.head.weight']
    )


# One that moves for the first time after the wrapper has made up its mind
# about what forward changes, too.
@pytest.mark.parametrize(
    ('fault', 'interval'), [(4, 1), (5, 1), (6, 1), (11, 1), (12, 10)]
)
def test_a_rejected_window_moves_no_teacher(tmp_path, fault, interval):
    keys = dict(accumulation=3, interval=interval)
    window = [n for n in range(1, 13) if (n - 1) // 3 == (fault - 1) // 3]
    faulty = train(tmp_path, faults=(fault,), **keys)
    clean = train(tmp_path, leave_out=window, **keys)
    assert_same(faulty, clean)


def test_without_faults_the_teacher_is_mmdets(tmp_path):
    assert_same(train(tmp_path), train(tmp_path, plain=True))
