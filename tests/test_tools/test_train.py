import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from toys import ToyNet  # registers what the config names

from mmnanguard.numerics import load_plain
from mmnanguard.safe_load import allow_mmengine_checkpoints
from tools.train import load_config, main, parse_args

TOOLS = Path(__file__).parents[2] / 'tools'
CONFIG = f"""
default_scope = 'mmengine'
model = dict(type='{ToyNet.__name__}')
train_dataloader = dict(
    dataset=dict(type='ToyData', size=24), batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
auto_scale_lr = dict(base_batch_size=8)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'toy.py'
    path.write_text(CONFIG)
    return str(path)


def load(path):
    # What onedl-mmengine loads takes the list of what is allowed with it.
    allow_mmengine_checkpoints()
    return load_plain(path)


def read_events(work_dir):
    rows = []
    for path in sorted(work_dir.glob('*/nanguard/events.jsonl')):
        rows += map(json.loads, path.read_text().splitlines())
    return rows


def test_guard_and_options(config, tmp_path):
    work_dir = tmp_path / 'work'
    options = [
        '--cfg-options',
        'default_hooks.drill.type=mmnanguard.FaultInjectionHook',
        'default_hooks.drill.faults.0.iter=3',
        'default_hooks.drill.faults.0.site=grad',
        'optim_wrapper.loss_scale=512',
    ]
    code = main(
        [config, '--work-dir', str(work_dir), '--guard', 'fp16', *options]
    )
    assert code == 0
    start, update, end = read_events(work_dir)
    assert start['guards']['default']['loss_scale']['value'] == 512
    assert (update['iter'], update['action']) == (3, 'skip')
    assert (end['kind'], end['how']) == ('end', 'finished')


def test_resume(config, tmp_path):
    work_dir = tmp_path / 'work'
    args = [config, '--work-dir', str(work_dir), '--guard', 'full']
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'randomness.seed=0']
    main(args)
    # MMEngine wants another name for each start within a second.
    main([*args, '--resume', *options, 'experiment_name=second'])
    checkpoint = str(work_dir / 'epoch_1.pth')
    main([*args, '--resume', checkpoint, *options, 'experiment_name=third'])
    main([*args, '--resume', checkpoint, *options, 'experiment_name=fourth'])
    starts = [row for row in read_events(work_dir) if row['kind'] == 'start']
    assert [row['attempt'] for row in starts] == [1, 2, 3, 4]
    assert [row['iter'] for row in starts] == [1, 7, 7, 7]
    content = load(work_dir / 'epoch_2.pth')
    assert content['meta']['iter'] == 12


def start_two_epochs(config, work_dir):
    """Train two epochs; return the arguments that resume the run."""
    args = [config, '--work-dir', str(work_dir), '--guard', 'full']
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'randomness.seed=0']
    main([*args, *options, f'experiment_name={work_dir.name}_first'])
    options[1] = 'train_cfg.max_epochs=3'
    options += [f'experiment_name={work_dir.name}_second']
    return [*args, '--resume', *options]


def damage(kind, path):
    if kind == 'gone':
        path.unlink()
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == 'bad':
        content = load(path)
        content['state_dict']['head.weight'][0, 0] = float('nan')
        torch.save(content, path)


@pytest.mark.parametrize('kind', ['none', 'bad', 'truncated', 'gone'])
def test_resume_takes_the_last_clean_one(config, tmp_path, kind):
    work_dir = tmp_path / kind
    again = start_two_epochs(config, work_dir)
    damage(kind, work_dir / 'epoch_2.pth')
    pointer = work_dir / 'last_clean_checkpoint'
    assert pointer.read_text() == str(work_dir / 'epoch_2.pth')
    pointer.write_text(str(work_dir / 'epoch_1.pth'))

    main(again)

    *_, start = [r for r in read_events(work_dir) if r['kind'] == 'start']
    assert start['iter'] == (13 if kind == 'none' else 7)
    log = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    log = ' '.join(log.split())  # a long line is wrapped
    assert ('resuming from the last clean one' in log) == (kind != 'none')
    left = load(work_dir / 'epoch_3.pth')
    whole = tmp_path / 'whole'
    main(start_two_epochs(config, whole))
    right = load(whole / 'epoch_3.pth')
    for name, tensor in right['state_dict'].items():
        assert torch.equal(tensor, left['state_dict'][name]), name


def test_resume_is_mmengines_without_a_clean_one(config, tmp_path):
    work_dir = tmp_path / 'bad'
    again = start_two_epochs(config, work_dir)
    (work_dir / 'last_clean_checkpoint').unlink()
    (work_dir / 'epoch_1.pth').unlink()
    main(again)
    *_, start = [r for r in read_events(work_dir) if r['kind'] == 'start']
    assert start['iter'] == 13


def test_amp_is_the_guarded_one(config):
    cfg = load_config(parse_args([config, '--amp']))
    assert cfg.optim_wrapper.type == 'mmnanguard.NanGuardAmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == 'float16'


def test_a_strategy_of_the_command_line_is_guarded(config):
    options = [
        'strategy.type=DeepSpeedStrategy',
        'strategy.bf16.immediate_grad_update=False',
    ]
    args = parse_args([config, '--guard', 'bf16', '--cfg-options', *options])
    cfg = load_config(args)
    wrapper = 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
    assert cfg.optim_wrapper.type == wrapper
    assert cfg.runner_type == 'FlexibleRunner'
    assert cfg.strategy.bf16 == dict(enabled=True, immediate_grad_update=False)
    assert cfg.strategy.train_micro_batch_size_per_gpu == 4


def test_without_guard_the_config_is_the_users(config):
    cfg = load_config(parse_args([config, '--auto-scale-lr']))
    assert 'type' not in cfg.optim_wrapper
    assert cfg.auto_scale_lr.enable is True
    assert cfg.work_dir == 'work_dirs/toy'


def test_errors(config, tmp_path, capsys):
    assert main([config, '--guard', 'fp8']) == 2
    assert re.search(
        r'error: GuardConfigError: .*fp8', capsys.readouterr().err
    )
    bare = tmp_path / 'bare.py'
    bare.write_text('model = dict()')
    assert main([str(bare), '--auto-scale-lr']) == 2
    assert 'auto_scale_lr.base_batch_size' in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        parse_args([config, '--amp', '--guard', 'bf16'])
    assert error.value.code == 2


@pytest.mark.parametrize(
    ('path', 'options', 'message'),
    [
        ('gone.py', (), 'gone.py: there is no such config'),
        ('nowhere::x/y.py', (), 'knows no project nowhere, but .*mmdet'),
        ('mmrazor::x/y.py', (), 'mmrazor is not installed'),
        ('mmnanguard::guards/fp8.py', (), 'fp8'),
        (
            None,
            ['optim_wrapper.guard.max_consecutive_skip=3'],
            "did you mean 'max_consecutive_skips'",
        ),
        (
            None,
            ['optim_wrapper.loss_scale=512.'],
            "take type='mmnanguard.NanGuardAmpOptimWrapper'",
        ),
        (None, ['optim_wrapper.clipgrad.max_norm=1'], "mean 'clip_grad'"),
        (
            None,
            ['default_hooks.x.type=mmnanguard.NanGaurdHook'],
            "no hook 'NanGaurdHook': did you mean 'NanGuardHook'",
        ),
        (
            None,
            ['optim_wrapper.type=mmnanguard.NanGuardOptimWraper'],
            "did you mean 'NanGuardOptimWrapper'",
        ),
    ],
)
def test_a_mistake_ends_with_2_and_says_what_to_do(
    config, tmp_path, capsys, path, options, message
):
    """Nothing is installed, which MMEngine's get_config would do."""
    work_dir = ['--work-dir', str(tmp_path)]
    if options:
        work_dir += ['--guard', 'fp32', '--cfg-options', *options]
    assert main([path or config, *work_dir]) == 2
    said = capsys.readouterr().err
    assert re.search(f'GuardConfigError: .*{message}', said), said


ENDING = """
custom_imports = dict(imports=['toys', 'test_train'])
custom_hooks = [dict(type='Ending')]
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
visualizer = dict(
    type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')])
"""


@HOOKS.register_module()
class Ending(Hook):
    """A hook that reports how a run ends, as a publishing hook would."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get('CRASHES') and runner.iter == 3:
            raise RuntimeError('something else')

    def after_train(self, runner):
        Path(runner.work_dir, 'success').touch()

    after_run = after_train


@pytest.mark.parametrize(
    ('ends', 'status'),
    [('well', 0), ('halted', 3), ('halted, no hook', 3), ('crashed', 1)],
)
def test_the_exit_status(config, tmp_path, ends, status):
    work_dir = tmp_path / 'work'
    with open(config, 'a') as file:
        file.write(ENDING)
    options = ['work_dir=' + str(work_dir)]
    is_halt = ends.startswith('halted')
    if is_halt:
        options += [
            'default_hooks.drill.type=mmnanguard.FaultInjectionHook',
            'default_hooks.drill.faults.0.iter=4',
            'default_hooks.drill.faults.0.site=weight',
            'optim_wrapper.guard.when_exhausted=halt',
        ]
    command = [sys.executable, TOOLS / 'train.py', config]
    if ends == 'halted, no hook':
        options += ['optim_wrapper.type=mmnanguard.NanGuardOptimWrapper']
    else:
        command += ['--guard', 'full']
    command += ['--cfg-options', *options]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    environment['CRASHES'] = '1' if ends == 'crashed' else ''

    done = subprocess.run(command, env=environment, capture_output=True)

    assert done.returncode == status, done.stderr.decode()
    assert (work_dir / 'success').exists() == (ends == 'well')
    (log,) = work_dir.glob('*/*.log')
    assert ('training halted at iteration 4' in log.read_text()) == is_halt
    assert (b'Traceback' in done.stderr) == (ends == 'crashed')
    if ends != 'halted, no hook':
        rows = read_events(work_dir)
        assert (rows[-1]['kind'] == 'halt') == is_halt
    if ends != 'crashed':  # what dashboards hold back is written
        (folder,) = work_dir.glob('*/vis_data')
        seen = EventAccumulator(str(folder)).Reload().Scalars('loss')
        assert len(seen) == (3 if is_halt else 6)


@pytest.mark.parametrize('content', [None, b'', b'hello', b'PK\3\4 cut off'])
def test_a_checkpoint_that_is_none_is_one_line(
    config, tmp_path, capsys, content
):
    path = tmp_path / 'a\x1b.pth'
    if content is not None:
        path.write_bytes(content)
    work_dir = str(tmp_path / 'work')
    assert main([config, '--work-dir', work_dir, '--resume', str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.partition('error: ')[2].startswith(
        'GuardConfigError: --resume'
    )
    assert '\x1b' not in line
