"""The monitor in real runs: what it sees, and that it leaves no trace."""

import json

import pytest
import torch
from baseline import CpuAmpOptimWrapper
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from ranks import launch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as registry
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from toys import (
    BATCH_SIZE,
    assert_same,
    guard_hooks,
    loader,
    low_precision,
    make_data,
    make_runner,
    wrapper,
)

from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.core.stability.sample import Largest, Sample
from mmnanguard.hooks.stability import sample_file
from mmnanguard.hooks.stability.sample_file import SampleFile


@MODELS.register_module()
class AttentionNet(BaseModel):
    """Convolution, BatchNorm, dropout, two kinds of attention, checkpoints."""

    def __init__(self, reward=0.0, has_checkpoints=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.1)
        self.softmax = SoftmaxAttention()
        self.fused = FusedAttention()
        self.head = nn.Linear(16, 2)
        self.reward = reward
        self.has_checkpoints = has_checkpoints

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.norm(self.stem(torch.stack(list(inputs))))
        x = self.drop(x.flatten(2).transpose(1, 2))
        for attention in (self.softmax, self.fused):
            if self.has_checkpoints:
                x = checkpoint(attention, x, use_reentrant=False)
            else:
                x = attention(x)
        logits = self.head(x.mean(1))
        if mode != 'loss':
            return logits
        labels = torch.tensor([s.label for s in data_samples])
        loss = F.cross_entropy(logits.float(), labels.to(logits.device))
        return dict(loss=loss - self.reward * logits.float().abs().mean())


class SoftmaxAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return x + (query @ key.transpose(1, 2)).softmax(-1) @ value


class FusedAttention(SoftmaxAttention):
    def forward(self, x):
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, -1)
        out = F.scaled_dot_product_attention(query, key, value)
        return x + out.squeeze(1)


def run(work_dir, type_='NanGuardOptimWrapper', **changes):
    """Run 10 iterations, or those that are asked for, and return the runner.

    ``monitor`` has the arguments of the hook; None leaves the hook out.
    """
    monitor = changes.pop('monitor', dict(interval=1))
    keys = changes.pop('keys', {})
    hooks = guard_hooks(*changes.pop('faults', ()))
    hooks.update(changes.pop('hooks', {}))
    if monitor is not None:
        hooks['stability'] = dict(
            type='mmnanguard.StabilityMonitorHook', **monitor
        )
    changes.setdefault('model', dict(type='AttentionNet'))
    runner = make_runner(
        work_dir, wrapper(type_, **keys), default_hooks=hooks, **changes
    )
    runner.train()
    return runner


def rows_of(work_dir, kind):
    """Return the rows of a kind of the newest attempt."""
    path = sorted(work_dir.glob('*/nanguard/events.jsonl'))[-1]
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row['kind'] == kind]


def samples_of(work_dir):
    """Return the header and the samples of the newest attempt."""
    path = sorted(work_dir.glob('*/nanguard/stability.jsonl'))[-1]
    rows = list(map(json.loads, path.read_text().splitlines()))
    return rows[0], [row for row in rows if 'iter' in row]


ADAM = dict(optimizer='AdamW', lr=0.01)
FP16 = low_precision(loss_scale=64.0)
TRACELESS = {
    'float32': dict(keys=ADAM),
    'SGD': dict(keys=dict(lr=0.01)),
    'accumulated': dict(keys=dict(ADAM, accumulative_counts=3)),
    'checkpoints': dict(
        keys=ADAM, model=dict(type='AttentionNet', has_checkpoints=True)
    ),
    'low precision': dict(
        type_='NanGuardAmpOptimWrapper', keys=dict(ADAM, **FP16)
    ),
    'unguarded': dict(type_='OptimWrapper', keys=ADAM),
    'faults': dict(
        keys=ADAM,
        faults=[dict(iter=3, site='grad'), dict(iter=6, site='loss')],
        hooks=dict(autopsy=dict(type='mmnanguard.AutopsyHook')),
    ),
}


@pytest.mark.parametrize('setup', TRACELESS)
def test_a_monitored_run_equals_an_unmonitored_one(tmp_path, setup):
    states = []
    runs = []
    for name, monitor in (('plain', None), ('monitored', dict(interval=1))):
        runs.append(
            run(tmp_path / name, monitor=monitor, **dict(TRACELESS[setup]))
        )
        states.append(torch.get_rng_state())
    assert_same(*runs)
    assert torch.equal(*states)
    assert len(samples_of(tmp_path / 'monitored')[1]) > 2


def test_what_a_sample_holds(tmp_path):
    run(
        tmp_path,
        'NanGuardAmpOptimWrapper',
        keys=dict(ADAM, **FP16),
        monitor=dict(interval=1),
    )
    header, samples = samples_of(tmp_path)
    assert {'stem', 'norm', 'softmax', 'softmax.qkv', 'head'} <= set(
        header['modules']
    )
    assert [row['iter'] for row in samples] == list(range(1, 11))
    for row in samples:
        assert len(row['outputs']) == len(header['modules'])
        assert row['logits'] is not None
        assert row['update_ratio'] > 0
        if FP16['dtype'] == 'float16':
            assert row['loss_scale'] == 64.0
            assert row['scaled_grad'] > 0
            names = [header['modules'][i] for i in row['float16']]
            assert 'head' in names


@pytest.mark.parametrize('attention', ['softmax', 'fused'])
def test_large_attention_logits_are_told(tmp_path, attention):
    @MODELS.register_module(force=True)
    class Sharp(AttentionNet):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                getattr(self, attention).qkv.weight.mul_(100)

    run(tmp_path, model=dict(type='Sharp'), keys=dict(lr=1e-6))
    (alert, *_) = rows_of(tmp_path, 'alert')
    assert alert['rule'] == 'attention_logits'
    assert alert['module'] == attention
    assert alert['iter'] == 1
    assert alert['id'] == f'{alert["run"]}-1-alert.1'


@pytest.mark.parametrize('type_', ['NanGuardOptimWrapper', 'OptimWrapper'])
def test_large_updates_are_told(tmp_path, type_):
    run(tmp_path, type_, keys=dict(lr=30.0), max_iters=4)
    rules = [row['rule'] for row in rows_of(tmp_path, 'alert')]
    assert rules[0] == 'update_ratio'


def test_a_small_loss_scale_is_told(tmp_path):
    pytest.importorskip('torch', '2.3')
    run(
        tmp_path,
        'NanGuardAmpOptimWrapper',
        keys=dict(ADAM, dtype='float16', loss_scale=2.0**-14),
    )
    rules = [row['rule'] for row in rows_of(tmp_path, 'alert')]
    assert 'underflow' in rules


def test_the_loss_scale_of_mmengines_own_wrapper(tmp_path):
    run(
        tmp_path,
        CpuAmpOptimWrapper.__name__,
        keys=dict(ADAM, dtype='float16', loss_scale=512.0),
    )
    _, samples = samples_of(tmp_path)
    assert {row['loss_scale'] for row in samples} == {512.0}


def test_a_rejected_update_has_no_ratio(tmp_path):
    run(tmp_path, keys=ADAM, faults=[dict(iter=4, site='grad')])
    _, samples = samples_of(tmp_path)
    without = [row['iter'] for row in samples if row['update_ratio'] is None]
    assert without == [4]


def test_weights_that_begin_with_0_are_left_out(tmp_path):
    """The second matrix of LoRA does, and its first updates are as large."""

    @MODELS.register_module(force=True)
    class Zero(AttentionNet):
        def __init__(self):
            super().__init__()
            for module in (self.softmax, self.fused):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    run(tmp_path, model=dict(type='Zero'), keys=dict(ADAM, lr=1e-3))
    _, samples = samples_of(tmp_path)
    assert samples[1]['update_ratio'] < 0.02


def test_nothing_is_left_between_samples(tmp_path):
    counts = []

    @MODELS.register_module(force=True)
    class Counted(AttentionNet):
        def forward(self, *args, **kwargs):
            modes = len(_get_current_function_mode_stack())
            assert not self.head._forward_hooks
            counts.append((len(registry._global_forward_hooks), modes))
            return super().forward(*args, **kwargs)

    run(
        tmp_path,
        model=dict(type='Counted'),
        keys=dict(lr=1e-6),
        monitor=dict(interval=10),
    )
    assert counts == [(1, 1), (0, 0)] * 5


def test_nothing_is_left_after_a_crash(tmp_path):
    @MODELS.register_module(force=True)
    class Crashes(AttentionNet):
        def forward(self, *args, **kwargs):
            raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        run(tmp_path, model=dict(type='Crashes'))
    assert _get_current_function_mode_stack() == []


def test_a_validation_in_a_window_is_not_measured(tmp_path):
    """Half of a window has run when a validation begins."""
    runner = run(
        tmp_path,
        keys=dict(ADAM, accumulative_counts=3),
        max_iters=9,
        monitor=dict(interval=1),
    )
    (hook,) = [h for h in runner.hooks if type(h).__name__.startswith('Stab')]
    runner._train_loop._iter = 9
    runner._train_loop._max_iters = 18
    hook.before_train_iter(runner, 0)
    assert registry._global_forward_hooks
    hook.before_val(runner)
    assert not registry._global_forward_hooks
    assert '__call__' not in vars(type(runner.model))
    # Validations in all windows would leave no sample.
    hook.after_val(runner)
    assert registry._global_forward_hooks
    hook.patches.undo()
    hook._drop()
    assert not registry._global_forward_hooks


@pytest.mark.filterwarnings('ignore:The .grad attribute of a')
def test_a_compiled_model_has_its_weights_measured(tmp_path):
    run(
        tmp_path,
        model=dict(type='ToyNet'),
        keys=ADAM,
        cfg=dict(compile=dict(backend='eager')),
    )
    header, samples = samples_of(tmp_path)
    assert header['modules'] == []
    assert samples[-1]['update_ratio'] > 0


def test_a_resumed_run_goes_on_with_the_trends(tmp_path):
    setup = dict(
        model=dict(type='AttentionNet', reward=2.0),
        keys=dict(ADAM, lr=0.05),
        monitor=dict(interval=5, update_ratio=None),
        # Seeds each iteration.
        train_cfg=dict(type='LeaveOutIterLoop', max_iters=20),
        train_dataloader=loader(make_data(20 * BATCH_SIZE)),
        hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=10, by_epoch=False)
        ),
    )
    whole = run(tmp_path / 'whole', **setup)
    resumed = run(
        tmp_path / 'resumed',
        resume=True,
        load_from=str(tmp_path / 'whole' / 'iter_10.pth'),
        **setup,
    )
    monitors = []
    for runner in (whole, resumed):
        (hook,) = [
            h for h in runner.hooks if type(h).__name__.startswith('Stab')
        ]
        monitors.append(hook._monitor)
    whole, resumed = monitors
    assert whole.num_samples > 10
    assert whole.trends == resumed.trends
    assert whole.levels == resumed.levels
    rules = [(a.rule, a.iter, a.value) for a in whole.open_alerts.values()]
    assert rules == [
        (a.rule, a.iter, a.value) for a in resumed.open_alerts.values()
    ]


def test_the_margins_are_told_once(tmp_path):
    run(tmp_path, keys=dict(lr=1e-4))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('stability: ') == 1
    assert 'update ratio' in log
    assert 'stability/update_ratio' not in log
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = list(map(json.loads, scalars.read_text().splitlines()))
    steps = [row['step'] for row in rows if 'stability/update_ratio' in row]
    assert steps == list(range(1, 11))


def test_alerts_are_written_although_samples_are_not(tmp_path, monkeypatch):
    def refuse(self, sample):
        raise OSError('disk full')

    monkeypatch.setattr(SampleFile, 'add', refuse)
    run(tmp_path, keys=dict(lr=30.0), max_iters=4)
    assert rows_of(tmp_path, 'alert')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('cannot write stability.jsonl') == 1


def test_a_long_run_has_a_small_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_file, 'MAX_SIZE', 20_000)
    file = SampleFile(tmp_path / 'nanguard' / 'stability.jsonl')
    names = [f'backbone.layer{i}' for i in range(30)]
    for iteration in range(1, 2001):
        outputs = {n: Largest(3.0 + iteration, 'float16') for n in names}
        file.add(Sample(iteration, outputs=outputs))
    path = tmp_path / 'nanguard' / 'stability.jsonl'
    assert path.stat().st_size < 22_000
    header, *rows = map(json.loads, path.read_text().splitlines())
    assert header['modules'] == names
    iterations = [row['iter'] for row in rows]
    # Evenly spread, from the first sample to almost the last.
    steps = {b - a for a, b in zip(iterations, iterations[1:])}
    assert len(steps) == 1
    assert iterations[0] == 1
    assert iterations[-1] > 1900
    assert len(iterations) > 20


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(interval=0), 'interval is 0'),
        (dict(head_room=4), 'head_room'),
        (dict(update_ratio=-1), 'update_ratio is -1'),
        (dict(act=None), "act is None: it must be a list of any of 'fp32'"),
        (dict(act=[['fp32']]), 'it must be a list'),
        (dict(act={'fp32': 1}), 'it must be a list'),
    ],
)
def test_arguments_that_are_not_allowed(tmp_path, arguments, words):
    with pytest.raises((GuardConfigError, TypeError), match=words):
        run(tmp_path, monitor=arguments)


def test_float16_outputs_that_grow_are_counted_down(tmp_path):
    pytest.importorskip('torch', '2.3')
    with pytest.raises(TrainingHalted):
        run(
            tmp_path,
            'NanGuardAmpOptimWrapper',
            model=dict(type='AttentionNet', reward=5.0),
            keys=dict(ADAM, lr=0.03, dtype='float16', loss_scale='dynamic'),
            monitor=dict(interval=50, update_ratio=None),
            max_iters=400,
        )
    rejected = [
        row['iter']
        for row in rows_of(tmp_path, 'update')
        if row['cause'] == 'loss_nonfinite'
    ]
    alerts = [
        row
        for row in rows_of(tmp_path, 'alert')
        if row['rule'] == 'headroom' and row['left'] is not None
    ]
    assert alerts[0]['iter'] < rejected[0]
    left = rejected[0] - alerts[0]['iter']
    assert left / 3 < alerts[0]['left'] < 3 * left


def test_all_ranks_tell_the_same(tmp_path):
    launch('stability_job.py', tmp_path)
    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    # Neither rank has a sample of which one cannot measure its part.
    assert [rank.pop('failing') for rank in ranks] == [0, 0]
    for kind in ranks[0]:
        first, second = ranks[0][kind], ranks[1][kind]
        # The outputs of rank 1 alone are large.
        assert [row['rule'] for row in first['alerts']] == ['headroom']
        assert first['alerts'] == second['alerts']
        assert first['is_equal']
        assert second['is_equal']
        # The wrapper runs the forward pass of the model itself.
        assert not first['is_partial']
