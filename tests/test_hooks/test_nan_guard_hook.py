import json
import math
from pathlib import Path

import pytest
import stopping
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from run_log import unwrapped_log
from toys import ToyNet, guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.numerics import load_plain

FAULTS = [
    dict(iter=4, site='activation', value='nan', where='head'),
    dict(iter=8, site='grad', value='inf', where='head.bias'),
]
GUARDED = wrapper('NanGuardOptimWrapper')


class Recorder(Hook):
    """A hook that keeps all arguments of its methods."""

    def __init__(self):
        self.events = []

    def after_guard_event(self, runner, event):
        self.events.append(event)


def test_one_console_line_per_event_and_one_at_the_start(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks(*FAULTS))
    runner.train()
    log = unwrapped_log(runner)
    assert log.count('mmnanguard 0.1.0 guards optimizer') == 1
    assert log.count('Iter 4: loss is NaN, and so are gradients') == 1
    assert 'the model logs' not in log
    line = (
        "Iter 8: gradient of 'head.bias' is Inf (1 of 5 tensors); update "
        'skipped, 1 skip in a row; 4 samples, named in its row'
    )
    assert log.count(line) == 1


def test_the_first_line_says_how_it_ends(tmp_path):
    """A run that goes back does not halt at these limits."""
    guard = dict(when_exhausted='rollback', divergence=dict())
    hooks = guard_hooks()
    hooks['rollback'] = dict(type='mmnanguard.RollbackHook')
    runner = make_runner(
        tmp_path, dict(GUARDED, guard=guard), default_hooks=hooks
    )
    runner.train()
    limits = 'max_consecutive_skips=20, max_skip_rate=0.5 of 200'
    assert f'goes back at {limits}, or divergence; run' in unwrapped_log(
        runner
    )


def test_every_hook_with_the_method_gets_the_event(tmp_path):
    recorder = Recorder()
    runner = make_runner(
        tmp_path,
        GUARDED,
        default_hooks=guard_hooks(*FAULTS),
        custom_hooks=[recorder],
    )
    runner.train()
    assert [event.iter for event in recorder.events] == [4, 8]


def test_the_event_knows_its_iteration(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks(*FAULTS))
    runner.train()
    first, second = read_rows(runner)
    assert first['samples'] == [f'train/{n:06d}.jpg' for n in range(12, 16)]
    assert first['losses'].keys() == {'loss_cls', 'loss_size'}
    assert first['losses']['loss_cls'] == 'nan'
    assert first['loss'] == 'nan'
    assert first['inputs']['inputs']['is_finite'] is True
    assert first['inputs']['inputs']['min'] < 0
    assert first['lr'] == [0.1]
    assert first['epoch'] == 1
    assert first['batch_idx'] == 3
    assert first['loss_scale'] is None
    assert second['loss'] == pytest.approx(sum(second['losses'].values()))
    assert second['params'] == [
        dict(
            name='head.bias',
            tensor='gradient',
            kind='inf',
            count=1,
            numel=2,
            min=second['params'][0]['min'],
            max=second['params'][0]['min'],
            dtype='float32',
        )
    ]
    assert first['id'] != second['id']
    assert first['run'] == second['run'] != ''


def test_a_window_names_the_samples_of_all_its_micro_batches(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper', accumulative_counts=3),
        default_hooks=guard_hooks(dict(iter=5, site='loss', value='nan')),
    )
    runner.train()
    (row,) = read_rows(runner)
    assert row['iter'] == 6
    assert row['samples'] == [f'train/{n:06d}.jpg' for n in range(12, 24)]


def test_a_short_last_window_names_its_own_samples_only(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper', accumulative_counts=3),
        default_hooks=guard_hooks(dict(iter=10, site='loss', value='nan')),
    )
    runner.train()
    (row,) = read_rows(runner)
    assert row['iter'] == 10
    assert row['samples'] == [f'train/{n:06d}.jpg' for n in range(36, 40)]


def test_without_sample_names_the_batch_is_named(tmp_path):
    runner = make_runner(
        tmp_path, GUARDED, default_hooks=guard_hooks(FAULTS[1])
    )
    for sample in runner._train_dataloader['dataset']:
        sample['data_samples'].set_metainfo(dict(img_path=None))
    runner.train()
    (row,) = read_rows(runner)
    assert row['samples'] == ['batch 7']


@pytest.mark.parametrize('key', ['img_id', 'sample_idx'])
def test_samples_by_number(tmp_path, key):
    runner = make_runner(
        tmp_path, GUARDED, default_hooks=guard_hooks(FAULTS[1])
    )
    for n, sample in enumerate(runner._train_dataloader['dataset']):
        sample['data_samples'].set_metainfo({'img_path': None, key: n})
    runner.train()
    (row,) = read_rows(runner)
    assert row['samples'][0] == f'{key} 28'


# Logs and scalars


def scalars_of(runner, parse_constant=pytest.fail):
    (path,) = Path(runner.log_dir).glob('vis_data/scalars.json')
    return [
        json.loads(line, parse_constant=parse_constant)
        for line in path.read_text().splitlines()
    ]


def test_one_nan_does_not_blank_the_smoothed_losses(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks(*FAULTS))
    runner.train()
    rows = scalars_of(runner)
    assert len(rows) == 10
    for row in rows:
        assert math.isfinite(row['loss'])
    # The fourth row averages the three good iterations before it.
    assert rows[3]['loss'] == rows[2]['loss'] != rows[4]['loss']


def test_mmengine_blanks_them(tmp_path):
    """MMEngine alone logs NaN losses, so the test above can fail."""
    runner = make_runner(
        tmp_path,
        GUARDED,
        default_hooks=dict(fire_drill=guard_hooks(FAULTS[0])['fire_drill']),
    )
    runner.train()
    (path,) = Path(runner.log_dir).glob('vis_data/scalars.json')
    assert path.read_text().count('"loss": NaN') == 7


def test_a_nan_in_the_first_iteration(tmp_path):
    fault = dict(iter=1, site='activation', where='head')
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks(fault))
    runner.train()
    rows = scalars_of(runner, parse_constant=float)
    assert math.isnan(rows[0]['loss'])  # the window has no finite value
    assert math.isfinite(rows[1]['loss'])


@MODELS.register_module()
class LogsNan(ToyNet):
    def train_step(self, data, optim_wrapper):
        return {**super().train_step(data, optim_wrapper), 'acc': math.nan}


def test_a_non_finite_value_of_a_healthy_update_is_told_once(tmp_path):
    runner = make_runner(
        tmp_path,
        GUARDED,
        default_hooks=guard_hooks(),
        model=dict(type='LogsNan'),
    )
    runner.train()
    assert unwrapped_log(runner).count("the model logs 'acc' as nan") == 1
    rows = scalars_of(runner, parse_constant=float)
    assert len(rows) == 10
    assert all(math.isnan(row['acc']) for row in rows)


def test_scalars_in_every_backend(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(
            'NanGuardAmpOptimWrapper',
            dtype='float16',
            # A number alone would come back, and NaN would not lower it.
            loss_scale=dict(init_scale=1024),
            guard=dict(proven_after=5),
            clip_grad=dict(max_norm=0.1),
        ),
        default_hooks=guard_hooks(
            dict(iter=2, site='grad', value=math.inf),
            dict(iter=8, site='grad', value=math.inf),
        ),
        visualizer=dict(
            type='Visualizer',
            vis_backends=[
                dict(type='LocalVisBackend'),
                dict(type='TensorboardVisBackend'),
            ],
        ),
    )
    runner.train()
    last = scalars_of(runner)[-1]
    assert last['guard/skipped'] == 1
    assert last['guard/routine_overflows'] == 1
    assert last['guard/amp_scale'] == 256.0
    assert 0 < last['guard/clip_coef'] < 1
    assert math.isfinite(last['grad_norm'])
    # Averaged by name: a key with 'loss' in it would be smoothed.
    scales = [row['guard/amp_scale'] for row in scalars_of(runner)]
    assert scales == [1024.0] + [512.0] * 6 + [256.0] * 3

    from tensorboard.backend.event_processing import event_accumulator

    log = event_accumulator.EventAccumulator(f'{runner.log_dir}/vis_data')
    log.Reload()
    tags = log.Tags()['scalars']
    assert {'guard/skipped', 'guard/amp_scale', 'grad_norm'} <= set(tags)
    assert log.Scalars('guard/amp_scale')[-1].value == 256.0


def test_no_clip_no_coefficient(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks())
    runner.train()
    assert 'guard/clip_coef' not in scalars_of(runner)[-1]
    assert 'guard/amp_scale' not in scalars_of(runner)[-1]
    assert ', no clipping halts at' in unwrapped_log(runner)


def test_the_guards_scalars_stay_short(tmp_path, monkeypatch):
    monkeypatch.setattr('mmnanguard.hooks.guard.run_scalars.SCALAR_LENGTH', 3)
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks())
    runner.train()
    buffer = runner.message_hub.get_scalar('train/guard/skipped')
    assert isinstance(buffer, HistoryBuffer)
    assert len(buffer.data[0]) == 3


def test_grad_norm_is_of_committed_updates_only(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks(*FAULTS))
    runner.train()
    norms, _ = runner.message_hub.get_scalar('train/grad_norm').data
    assert len(norms) == 8
    assert all(map(math.isfinite, norms))


# What is not guarded is said


def test_a_wrapper_that_is_no_guard(tmp_path):
    runner = make_runner(
        tmp_path, wrapper('OptimWrapper'), default_hooks=guard_hooks()
    )
    runner.train()
    log = unwrapped_log(runner)
    assert 'ERROR' in log
    assert 'run by OptimWrapper: ITS UPDATES ARE NOT GUARDED' in log
    assert '--amp' in log
    assert 'mmnanguard.NanGuardAmpOptimWrapper' in log


@pytest.mark.parametrize(
    ('leftover', 'cure'),
    [
        (dict(fp16=dict(loss_scale=512.0)), 'NanGuardAmpOptimWrapper'),
        (dict(optimizer_config=dict(grad_clip=None)), 'clip_grad'),
    ],
)
def test_leftovers_of_1x(tmp_path, leftover, cure):
    runner = make_runner(
        tmp_path, GUARDED, default_hooks=guard_hooks(), cfg=Config(leftover)
    )
    runner.train()
    warning = next(
        line
        for line in unwrapped_log(runner).splitlines()
        if '1.x key' in line
    )
    assert next(iter(leftover)) in warning
    assert cure in warning


@pytest.mark.parametrize('kind', stopping.STOPPING)
def test_a_hook_that_ends_the_run_is_named_at_its_start(tmp_path, kind):
    runner = make_runner(
        tmp_path,
        GUARDED,
        custom_hooks=[kind()],
        default_hooks=guard_hooks(*FAULTS[1:]),
    )
    runner.train()
    assert f'mmnanguard: {kind.__name__} ends the run' in unwrapped_log(runner)


@pytest.mark.parametrize('kind', stopping.HARMLESS)
def test_a_hook_that_does_not_is_not(tmp_path, kind):
    runner = make_runner(
        tmp_path, GUARDED, custom_hooks=[kind()], default_hooks=guard_hooks()
    )
    runner.train()
    assert 'ends the run' not in unwrapped_log(runner)


def test_nothing_is_said_of_a_clean_config(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks())
    runner.train()
    log = unwrapped_log(runner)
    assert 'NOT GUARDED' not in log
    assert '1.x key' not in log
    assert read_rows(runner) == []


def test_after_training_the_wrapper_stands_alone_again(tmp_path):
    runner = make_runner(tmp_path, GUARDED, default_hooks=guard_hooks())
    runner.train()
    assert runner.optim_wrapper.guard._listener is None


def test_beside_an_unguarded_wrapper_no_batch_is_kept(tmp_path):
    runner = make_runner(
        tmp_path, wrapper('OptimWrapper'), default_hooks=guard_hooks()
    )
    runner.train()
    (hook,) = [h for h in runner.hooks if type(h).__name__ == 'NanGuardHook']
    assert len(hook._samples._recent) <= 1


@pytest.mark.parametrize('save_optimizer', [True, False])
def test_a_checkpoint_has_the_guard_where_it_has_the_optimizer(
    tmp_path, save_optimizer
):
    hooks = guard_hooks()
    hooks['checkpoint'] = dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=10,
        save_optimizer=save_optimizer,
    )
    make_runner(tmp_path, wrapper(), default_hooks=hooks).train()
    saved = load_plain(tmp_path / 'iter_10.pth')
    assert 'nanguard' not in saved
    assert ('guard' in saved.get('optimizer', {})) is save_optimizer
