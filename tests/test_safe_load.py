"""MMEngine's checkpoints load, and no other objects do."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.numerics import load_plain
from mmnanguard.numerics.checkpoints.load_plain import HAS_ALLOW_LIST, load
from mmnanguard.safe_load import allow_mmengine_checkpoints

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(tmp_path):
    hooks = guard_hooks()
    hooks['checkpoint'] = dict(
        type='CheckpointHook', interval=3, by_epoch=False
    )
    runner = make_runner(
        tmp_path / 'run',
        wrapper('NanGuardOptimWrapper'),
        max_iters=3,
        default_hooks=hooks,
    )
    runner.train()
    return tmp_path / 'run' / 'iter_3.pth'


def load_in_a_fresh_process(path, prepare=''):
    code = f'import torch\n{prepare}\ntorch.load({str(path)!r})'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    return subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True
    )


ALLOW = (
    'from mmnanguard.safe_load import allow_mmengine_checkpoints as allow\n'
    'allow()'
)


@pytest.mark.skipif(
    not HAS_ALLOW_LIST, reason='torch before 2.6 loads without a list'
)
def test_pytorch_alone_refuses_and_the_list_cures(checkpoint):
    refused = load_in_a_fresh_process(checkpoint)
    assert 'UnpicklingError' in refused.stderr
    loaded = load_in_a_fresh_process(checkpoint, ALLOW)
    assert loaded.returncode == 0, loaded.stderr


def test_what_comes_back(checkpoint):
    allow_mmengine_checkpoints()
    content = load_plain(checkpoint)
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert len(buffer.data[0]) == 3
    assert buffer.statistics('mean', 3) == buffer.mean(3)
    assert content['optimizer']['guard']['state']['num_steps'] == 3


@pytest.mark.skipif(
    not HAS_ALLOW_LIST, reason='torch before 2.6 loads without a list'
)
def test_what_is_allowed_stays_so_whoever_uses_the_list_as_well(checkpoint):
    allow_mmengine_checkpoints()
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray]):
        pass
    assert load_plain(checkpoint)['meta']['iter'] == 3


SCHEDULES = dict(
    CosineAnnealing=dict(T_max=9),
    CosineRestart=dict(periods=[4, 5], restart_weights=[1, 0.5], eta_min=0),
    Exponential=dict(gamma=0.9),
    MultiStep=dict(milestones=[4]),
    Poly=dict(power=0.9),
    Step=dict(step_size=2),
)


@pytest.mark.parametrize('name', sorted(PARAM_SCHEDULERS.module_dict))
def test_the_state_of_each_schedule(tmp_path, name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    keys = next((SCHEDULES[k] for k in SCHEDULES if name.startswith(k)), {})
    if name.startswith('OneCycle'):
        keys = dict(eta_max=0.1, total_steps=9)
    if name.endswith('ParamScheduler'):
        keys = dict(keys, param_name='lr')
    schedule = PARAM_SCHEDULERS.get(name)(optimizer, **keys)
    torch.save(schedule.state_dict(), tmp_path / 'x.pth')
    allow_mmengine_checkpoints()
    assert load_plain(tmp_path / 'x.pth') == schedule.state_dict()


@pytest.mark.parametrize(
    'array',
    [np.arange(3), np.float64(1.5), np.array([1.5], np.float16), np.bool_(1)],
)
def test_numpy_in_a_dataset_meta(tmp_path, array):
    allow_mmengine_checkpoints()
    torch.save(dict(meta=array), tmp_path / 'x.pth')
    loaded = load_plain(tmp_path / 'x.pth')
    assert np.array_equal(loaded['meta'], array)


class Runs:
    def __reduce__(self):
        return os.system, ('true',)


class Digs:
    """An object that asks for getattr, which gives access to everything."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


class DigsElsewhere:
    def __reduce__(self):
        return getattr, (np.ndarray, 'tofile')


@pytest.mark.parametrize('evil', [Runs, Digs, DigsElsewhere])
def test_a_checkpoint_that_wants_more_is_refused(tmp_path, evil):
    allow_mmengine_checkpoints()
    torch.save(dict(meta=evil()), tmp_path / 'x.pth', pickle_protocol=2)
    with pytest.raises(Exception, match=r'[Uu]nsupported|asks for'):
        load_plain(tmp_path / 'x.pth')


@pytest.mark.parametrize('name', ['Tensor', 'Size'])
def test_a_class_is_not_changed(name):
    code = f'ctorch\n{name}\n'.encode() + b'}(X\x04\0\0\0evilK\1ub.'
    with pytest.raises(pickle.UnpicklingError, match='Unsupported state'):
        load(io.BytesIO(code))
    assert not hasattr(getattr(torch, name), 'evil')
