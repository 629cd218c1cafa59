"""The log of a guarded run hides no NaN, and shows no old number."""

import json
import math
from pathlib import Path

import pytest
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from toys import ToyNet, guard_hooks, make_runner, wrapper

from mmnanguard.hooks.guard.run_scalars import FiniteHistory
from mmnanguard.numerics import load_plain

NO_LIMITS = dict(max_consecutive_skips=None, max_skip_rate=None)
NAN = math.nan


@MODELS.register_module()
class LossesByIteration(ToyNet):
    """Logs and trains on losses of which some are NaN."""

    def __init__(self, nan_cls=(), nan_size=(), data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.nan_iters = dict(loss_cls=nan_cls, loss_size=nan_size)
        self.num_calls = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        self.num_calls += 1
        for name, iters in self.nan_iters.items():
            if self.num_calls in iters:
                losses[name] = losses[name] * NAN
        return losses


def train(tmp_path, model, optim_wrapper=None, **changes):
    hooks = guard_hooks()
    hooks.update(changes.pop('default_hooks', {}))
    log = dict(by_epoch=False, window_size=changes.pop('window_size', 3))
    log['custom_cfg'] = changes.pop('custom_cfg', [])
    runner = make_runner(
        tmp_path,
        optim_wrapper or wrapper(guard=NO_LIMITS),
        model=model,
        default_hooks=hooks,
        log_processor=log,
        **changes,
    )
    runner.train()
    (path,) = Path(runner.log_dir).glob('vis_data/scalars.json')
    rows = map(json.loads, path.read_text().splitlines())
    (log_path,) = Path(runner.log_dir).glob('*.log')
    return runner, list(rows), log_path.read_text()


def nan_rows(rows, key):
    """Return the iterations, from 1, whose logged value is NaN."""
    return [i for i, row in enumerate(rows, 1) if math.isnan(row[key])]


def test_a_window_without_a_finite_value_is_nan_by_each_name(tmp_path):
    model = dict(
        type='LossesByIteration', nan_cls=[4, 5, 6, 7], nan_size=[6, 7, 8]
    )
    _, rows, log = train(tmp_path, model)
    assert nan_rows(rows, 'loss_cls') == [6, 7]
    assert nan_rows(rows, 'loss_size') == [8]
    assert nan_rows(rows, 'loss') == [6, 7, 8]
    assert 'loss: nan' in log


def test_no_norm_of_an_earlier_window_is_shown(tmp_path):
    """The norms of committed updates stay finite, and do not stand still."""
    model = dict(type='LossesByIteration', nan_cls=range(4, 9))
    runner, rows, _ = train(tmp_path, model)
    assert nan_rows(rows, 'grad_norm') == [6, 7, 8]
    norms, _ = runner.message_hub.get_scalar('train/grad_norm').data
    assert len(norms) == 5


@pytest.mark.parametrize('method', ['mean', 'max', 'min'])
@pytest.mark.parametrize('window_size', [1, 2, 'global'])
def test_each_statistic(tmp_path, method, window_size):
    custom = dict(data_src='loss_cls', method_name=method, log_name='custom')
    custom['window_size'] = window_size
    model = dict(type='LossesByIteration', nan_cls=[1, 4, 5, 6])
    _, rows, _ = train(tmp_path, model, custom_cfg=[custom], max_iters=7)
    expected = {1: [1, 4, 5, 6], 2: [1, 5, 6], 'global': [1]}[window_size]
    assert nan_rows(rows, 'custom') == expected


def test_finite_values_give_mmengines_numbers():
    plain = HistoryBuffer([0.1, 0.7, 0.3], [1, 2, 1])
    history = FiniteHistory.of(plain)
    for name in ('mean', 'max', 'min'):
        for size in (None, 1, 2, 5):
            expected = plain.statistics(name, size)
            assert history.statistics(name, size) == expected
    assert history.current() == plain.current()


def test_a_checkpoint_holds_mmengines_class_and_is_resumed(tmp_path):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=5)
    model = dict(type='LossesByIteration', nan_cls=[5])
    hooks = dict(checkpoint=checkpoint)
    train(tmp_path, model, default_hooks=hooks, max_iters=5)
    saved = load_plain(tmp_path / 'iter_5.pth')
    scalars = saved['message_hub']['log_scalars']
    assert type(scalars['train/loss']) is HistoryBuffer
    assert math.isnan(scalars['train/loss'].data[0][-1])
    model = dict(type='ToyNet')
    _, rows, _ = train(tmp_path, model, max_iters=7, resume=True)
    assert nan_rows(rows, 'loss') == []


# Beside a wrapper that is not guarded


def test_beside_an_unguarded_wrapper_nothing_is_filtered(tmp_path):
    model = dict(type='LossesByIteration', nan_cls=[4])
    plain, guarded = tmp_path / 'plain', tmp_path / 'guarded'
    kept = {}
    for path, hooks in ((plain, {}), (guarded, guard_hooks())):
        runner = make_runner(
            path, wrapper('OptimWrapper'), model=model, default_hooks=hooks
        )
        runner.train()
        kept[path] = runner.message_hub.get_scalar('train/loss')
    assert type(kept[guarded]) is HistoryBuffer
    values = [list(map(repr, kept[path].data[0])) for path in kept]
    assert values[0] == values[1]
    (log,) = guarded.glob('*/*.log')
    log = log.read_text()
    assert 'loss: nan' in log
    assert log.count("the model logs 'loss' as nan, and optimizer") == 1
    assert 'is NOT GUARDED' in log
