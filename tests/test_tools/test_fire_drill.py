"""A real drill of tools/fire_drill.py, and its verdicts on made-up drills."""

import importlib
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mmnanguard.hooks.drill.short_drill import plan_short_drill
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'digits' / 'drill_fp16.py')


@pytest.fixture
def drill(monkeypatch):
    # Small nets in several processes: more threads make them slower.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module('fire_drill')


@pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)
def test_drill_on_digits(drill, tmp_path, capsys):
    options = [
        f'default_hooks.fire_drill.faults.{index}.iter={iteration}'
        for index, iteration in enumerate((4, 12, 20, 28, 36))
    ]
    options.append('train_cfg.max_epochs=1')
    work_dir = ['--work-dir', str(tmp_path)]
    assert drill.main([CONFIG, *work_dir, '--cfg-options', *options]) == 0

    report = json.loads((tmp_path / 'fire_drill.json').read_text())
    assert report['passed']
    assert [(row['iter'], row['site']) for row in report['faults']] == [
        (4, 'input'),
        (12, 'activation'),
        (20, 'loss'),
        (28, 'grad'),
        (36, 'buffer'),
    ]
    assert {row['action'] for row in report['faults']} == {'skip'}
    blamed = {row['site']: row['blamed'] for row in report['faults']}
    assert blamed['grad'] == ['head.weight']
    assert blamed['buffer'] == ['backbone.0.bn.running_var']
    assert blamed['input'][0].startswith('digits/train/')

    guarded, calm, plain = report['runs']
    assert guarded['bad_weights'] == calm['bad_weights'] == []
    assert 'head.weight' in plain['bad_weights']
    assert min(guarded['accuracy'], calm['accuracy']) > 50
    assert plain['accuracy'] < 20  # NaN scores: all digits are the same

    output = capsys.readouterr().out
    assert 'digits/train/' in output
    assert 'drill passed' in output


def came_to(**changes):
    return dict(run='', exit=0, seconds=1, bad_weights=[], **changes)


def skip(iteration):
    return dict(
        kind='update',
        iter=iteration,
        action='skip',
        cause='loss_nonfinite',
        params=[],
        num_bad_params=0,
        num_params=2,
        samples=['a', 'b'],
    )


ALL_SEEN = [skip(iteration) for iteration in (30, 110, 180, 250, 320)]


@pytest.mark.parametrize(
    ('guarded', 'calm', 'events', 'options', 'status'),
    [
        pytest.param({}, {}, ALL_SEEN, [], 0, id='all seen'),
        pytest.param({}, {}, ALL_SEEN[1:], [], 1, id='one not seen'),
        pytest.param(
            {},
            {},
            ALL_SEEN[1:],
            ['default_hooks.fire_drill.faults.0.value=1e38'],
            0,
            id='a finite one not seen',
        ),
        pytest.param({'exit': 1}, {}, ALL_SEEN, [], 1, id='crashed'),
        pytest.param({}, {'exit': 1}, ALL_SEEN, [], 1, id='calm crashed'),
        pytest.param(
            {'bad_weights': ['w']}, {}, ALL_SEEN, [], 1, id='bad weights'
        ),
        pytest.param(
            {'bad_weights': ['mask']},
            {'bad_weights': ['mask']},
            ALL_SEEN,
            [],
            0,
            id='-inf by design',
        ),
        pytest.param(
            {'bad_weights': None}, {}, ALL_SEEN, [], 0, id='no checkpoint'
        ),
    ],
)
def test_verdict(
    drill, tmp_path, monkeypatch, guarded, calm, events, options, status
):
    ends = {'guarded': guarded, 'guarded, no faults': calm}
    monkeypatch.setattr(
        drill,
        'run',
        lambda title, cfg, folder: (
            {**came_to(accuracy='nan'), **ends.get(title, {'exit': 1})},
            events,
        ),
    )
    command = [CONFIG, '--work-dir', str(tmp_path)]
    if options:
        command += ['--cfg-options', *options]
    assert drill.main(command) == status
    assert (tmp_path / 'fire_drill.json').exists()


def test_a_fault_is_met_at_the_end_of_its_accumulation_window(drill):
    fault = drill_fault(iter=6)
    assert drill.join(fault, [skip(8)], window=4)['action'] == 'skip'
    assert 'action' not in drill.join(fault, [skip(12)], window=4)
    assert 'action' not in drill.join(fault, [skip(8)], window=1)


def drill_fault(**changes):
    from mmnanguard.hooks import FaultInjectionHook

    spec = dict(site='loss', value='nan', **changes)
    return FaultInjectionHook([spec]).faults[0]


def test_unguard_turns_each_wrapper_back(drill):
    guarded = Config(
        dict(
            optim_wrapper=dict(
                constructor='GANConstructor',
                generator=dict(
                    type='mmnanguard.NanGuardOptimWrapper',
                    guard=dict(max_consecutive_skips=3),
                    clip_grad=dict(max_norm=1),
                    optimizer=dict(type='SGD', lr=0.1),
                ),
                discriminator=dict(
                    type='NanGuardOptimWrapper',
                    clip_grad=dict(type='TieredClip'),
                    optimizer=dict(type='SGD', lr=0.1),
                ),
            ),
            default_hooks=dict(
                nan_guard=dict(type='mmnanguard.NanGuardHook'),
                drill=dict(type='FaultInjectionHook', faults=[]),
                checkpoint=dict(type='CheckpointHook'),
                timer=None,
            ),
            custom_hooks=[dict(type='EventLogHook'), dict(type='EMAHook')],
        )
    )
    before = guarded.to_dict()
    plain, title = drill.unguard(guarded)
    assert title == 'unguarded'
    assert guarded.to_dict() == before
    assert plain.to_dict() == dict(
        optim_wrapper=dict(
            constructor='GANConstructor',
            generator=dict(
                type='OptimWrapper',
                clip_grad=dict(max_norm=1),
                optimizer=dict(type='SGD', lr=0.1),
            ),
            discriminator=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)
            ),
        ),
        default_hooks=dict(
            drill=dict(type='FaultInjectionHook', faults=[]),
            checkpoint=dict(type='CheckpointHook'),
            timer=None,
        ),
        custom_hooks=[dict(type='EMAHook')],
    )


@pytest.mark.parametrize(
    ('device', 'kept', 'expected'),
    [
        ('cpu', {}, 'unguarded, fp32 (no GPU)'),
        ('cuda', dict(loss_scale=8.0, dtype='float16'), 'unguarded'),
    ],
)
def test_unguarded_fp16_needs_a_gpu(
    drill, monkeypatch, device, kept, expected
):
    monkeypatch.setattr(drill, 'get_device', lambda: device)
    guarded = dict(
        type='mmnanguard.NanGuardAmpOptimWrapper',
        loss_scale=8.0,
        dtype='float16',
        optimizer=dict(type='SGD', lr=0.1),
    )
    plain, title = drill.unguard(Config(dict(optim_wrapper=guarded)))
    assert title == expected
    kind = 'AmpOptimWrapper' if kept else 'OptimWrapper'
    assert plain.optim_wrapper == dict(
        type=kind, optimizer=dict(type='SGD', lr=0.1), **kept
    )


def test_a_config_without_faults_gets_a_short_drill(drill, tmp_path):
    work_dir = tmp_path / 'w'
    plain = CONFIG.replace('drill_fp16', 'plain_fp32')
    command = [plain, '--guard', 'fp32', '--work-dir', str(work_dir)]
    assert drill.main(command) == 0
    report = json.loads((work_dir / 'fire_drill.json').read_text())
    faults = [(row['site'], row['action']) for row in report['faults']]
    assert faults == [('loss', 'skip'), ('grad', 'skip')]
    guarded, calm, plain = report['runs']
    assert guarded['bad_weights'] == calm['bad_weights'] == []
    assert 'head.weight' in plain['bad_weights']
    # Only the newest weights of each run, of an epoch cut short.
    (saved,) = work_dir.glob('*/guarded/*.pth')
    assert saved.name == 'iter_12.pth'


@pytest.mark.parametrize('window', [1, 4])
def test_the_plan_of_a_short_drill(window):
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            val_dataloader=dict(batch_size=1),
            val_cfg=dict(),
            val_evaluator=dict(type='Accuracy'),
            train_cfg=dict(by_epoch=True, max_epochs=100),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', save_best='acc')
            ),
        )
    )
    hook = plan_short_drill(cfg, window)
    assert hook is cfg.default_hooks.fire_drill
    # Each fault strikes the last micro-batch of a window.
    assert [fault['iter'] for fault in hook['faults']] == [
        4 * window,
        8 * window,
    ]
    assert hook['ends_at'] == cfg.train_dataloader.num_batch_per_epoch
    assert cfg.default_hooks.checkpoint.interval == hook['ends_at']
    assert 'save_best' not in cfg.default_hooks.checkpoint
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
    # The schedule stays that of the whole run.
    assert cfg.train_cfg.max_epochs == 100


def test_a_drill_needs_a_guard(drill, capsys):
    assert drill.main([CONFIG.replace('drill_fp16', 'plain_fp32')]) == 2
    assert 'add --guard fp32' in capsys.readouterr().err
