"""A model that overflows float16 is healed while it trains, on real digits.

Its depthwise conv makes numbers beyond 65504 of ordinary ones, and a norm in
float32 makes them small again: float32 learns, float16 cannot.
"""

import re
from pathlib import Path
from typing import NamedTuple, Tuple

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from toys import NUMBERS, read_rows

from mmnanguard.hooks.replay.dump_replay import open_dump

ROOT = Path(__file__).parents[2]
CONV = 'backbone.1.conv'
NUM_EPOCHS = 3
NUM_UPDATES = 45 * NUM_EPOCHS
# In percentage points, after the last epoch. Over eight seeds float32 ended at
# 96.1 to 98.1, the other two runs of a seed at most 0.6 away from it, and the
# run that learns nothing near 10. Other processors round otherwise.
TOLERANCE = 10


class Trained(NamedTuple):
    runner: Runner
    accuracy: Tuple[float, ...]  # after each epoch
    start: dict  # the weights and buffers before training


def train(work_dir, name, **hooks):
    """Train configs/digits with these hooks added, or removed if None."""
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{name}.py')
    cfg.model.depthwise_gain = 1e5
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'healing_{next(NUMBERS)}'
    cfg.train_cfg.max_epochs = cfg.param_scheduler[1].end = NUM_EPOCHS
    cfg.default_hooks.checkpoint = None
    cfg.optim_wrapper.guard = dict(max_consecutive_skips=None)
    if name.startswith('plain'):
        del cfg.optim_wrapper['guard']
    for key, hook in hooks.items():
        cfg.default_hooks.pop(key, None)
        if hook is not None:
            cfg.default_hooks[key] = hook
    runner = Runner.from_cfg(cfg)
    start = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    accuracy = runner.message_hub.get_scalar('val/accuracy').data[0]
    return Trained(runner, tuple(map(float, accuracy)), start)


@pytest.fixture(scope='module')
def in_float32(tmp_path_factory):
    return train(tmp_path_factory.mktemp('float32'), 'plain_fp32')


@pytest.fixture(scope='module')
def healed(tmp_path_factory):
    return train(tmp_path_factory.mktemp('healed'), 'unstable_fp16')


def assert_learnt_as_well(run, other):
    assert other.accuracy[-1] > 85
    assert run.accuracy[-1] > other.accuracy[-1] - TOLERANCE


def test_float16_alone_learns_nothing(tmp_path):
    run = train(tmp_path, 'unstable_fp16', fp32=None)

    assert len(read_rows(run.runner)) == NUM_UPDATES
    (autopsy,) = read_rows(run.runner, 'autopsy')
    assert (autopsy['module'], autopsy['remedy']) == (CONV, 'fp32')
    assert read_rows(run.runner, 'remedy') == []
    for name, tensor in run.runner.model.state_dict().items():
        assert torch.equal(tensor, run.start[name]), name
    assert len(set(run.accuracy)) == 1
    assert run.accuracy[0] < 50  # 10 is chance


def test_the_first_skip_heals_it(healed, in_float32):
    (skip,) = read_rows(healed.runner)
    assert (skip['iter'], skip['cause']) == (1, 'loss_nonfinite')

    (autopsy,) = read_rows(healed.runner, 'autopsy')
    assert autopsy['id'] == skip['id']
    assert (autopsy['module'], autopsy['remedy']) == (CONV, 'fp32')
    assert autopsy['dtype'] == 'float16'
    assert autopsy['input_absmax'] < autopsy['dtype_max']  # it began here
    (remedy,) = read_rows(healed.runner, 'remedy')
    assert (remedy['id'], remedy['module']) == (skip['id'], CONV)

    assert_learnt_as_well(healed, in_float32)


def test_the_dump_is_of_the_time_before(healed):
    (path,) = Path(healed.runner.log_dir).glob('nanguard/dumps/*.pt')
    (live,) = read_rows(healed.runner, 'autopsy')
    replayed = open_dump(path).autopsy()
    assert (replayed.module, replayed.remedy) == (live['module'], 'fp32')


def test_the_line_that_it_prints_prevents_it(tmp_path, healed, in_float32):
    (log,) = Path(healed.runner.log_dir).glob('*.log')
    (line,) = re.findall('to make that permanent: (.*)', log.read_text())
    hooks = Config.fromstring(line, '.py').default_hooks
    assert hooks.fp32.modules == [CONV]

    mended = train(tmp_path, 'unstable_fp16', **hooks)

    assert read_rows(mended.runner) == []
    assert read_rows(mended.runner, 'autopsy') == []
    assert_learnt_as_well(mended, in_float32)
