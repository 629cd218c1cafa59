"""Each command that console and report hand out does what it promises."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from toys import ToyData, ToyNet

from mmnanguard.core import Autopsy
from mmnanguard.core.launch import Launch
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow, line_of_fp32
from mmnanguard.hooks._shared import launch as run_start
from mmnanguard.numerics import load_plain
from mmnanguard.report import load_run
from mmnanguard.safe_load import allow_mmengine_checkpoints
from tools import replay, scan_checkpoints, train

# A folder that a command must quote.
ODD_NAME = "my run's $HOME; \x1b[31m猫"
CONFIG = f"""
default_scope = 'mmengine'
custom_imports = dict(imports=['toys'])
model = dict(type='{ToyNet.__name__}')
train_dataloader = dict(
    dataset=dict(type='NamedData', size=24), batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False))
train_cfg = dict(by_epoch=False, max_iters=6)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='CommandFault')]
"""


@DATASETS.register_module()
class NamedData(ToyData):
    """Data whose samples have odd names, and no annotations to read."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        item['data_samples'].set_metainfo(dict(img_path=f'{index} a\tb.jpg'))
        return item


def in_fp32(runner):
    """Return the names that a Fp32ModulesHook has in float32."""
    names = []
    for hook in runner.hooks:
        names += getattr(hook, 'patterns', [])
    return names


@HOOKS.register_module()
class CommandFault(Hook):
    """Crash in iteration 5 once, or poison the gradients there."""

    fault = ''
    names, rates = None, None
    in_fp32, settings = None, None

    def before_train(self, runner):
        cls = type(self)
        cls.in_fp32 = in_fp32(runner)
        cls.settings = runner.cfg.optim_wrapper

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        cls = type(self)
        cls.rates = [
            *(cls.rates or ()),
            runner.optim_wrapper.get_lr()['lr'][0],
        ]
        for sample in data_batch['data_samples']:
            cls.names = [*(cls.names or ()), sample.img_path]
        if runner.iter == 4 and self.fault == 'crash':
            raise RuntimeError('a fault')
        if runner.iter == 4 and self.fault == 'nan':
            data_batch['inputs'][0][:] = float('nan')


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    # Two runs of a process may not begin in the same second.
    times = map('20260101_{:06}'.format, itertools.count())
    monkeypatch.setattr('time.strftime', lambda *_: next(times))
    CommandFault.fault, CommandFault.names, CommandFault.rates = '', [], []
    CommandFault.in_fp32 = None


@pytest.fixture
def work_dir(tmp_path):
    return tmp_path / ODD_NAME / 'work'


@pytest.fixture
def config(work_dir):
    work_dir.parent.mkdir()
    path = work_dir.parent / 'a config.py'
    path.write_text(CONFIG)
    return path


def words_of(command):
    """Return the words of which bash makes the command."""
    script = f'words() {{ printf \'%s\\0\' "$@"; }}; words {command}'
    done = subprocess.run(
        ['bash', '-c', script], capture_output=True, check=True
    )
    return list(map(os.fsdecode, done.stdout.split(b'\0')[:-1]))


def paste(command):
    """Run a command as bash reads it, in this process; return the status."""
    assert command.isprintable()
    python, _, package, tool, *words = words_of(command)
    assert (python, package) == ('python', 'mmnanguard')
    tools = dict(train=train, replay=replay, scan_checkpoints=scan_checkpoints)
    return tools[tool].main(words)


def start(config, work_dir, fault='', *options):
    CommandFault.fault = fault
    argv = [str(config), '--work-dir', str(work_dir), *options]
    status = None
    # The crash of a run, which a shell would show as its exit status.
    with suppress(RuntimeError):
        status = train.main(argv)
    CommandFault.fault = ''
    CommandFault.names, CommandFault.rates = [], []
    return status


def codes_of(work_dir):
    steps = load_run(str(work_dir)).verdict.steps
    return {step.text.split(',')[0]: step.code for step in steps}


def last_checkpoint(work_dir):
    allow_mmengine_checkpoints()
    return load_plain((work_dir / 'last_checkpoint').read_text())


def test_resume_after_a_crash(config, work_dir):
    start(config, work_dir, 'crash', '--guard', 'fp32')
    # The dump of the config is enough.
    config.unlink()
    code = codes_of(work_dir)['resume it once the reason is repaired']
    assert paste(code) == 0
    assert len(CommandFault.rates) == 2
    report = load_run(str(work_dir))
    assert (report.state, report.verdict.is_healthy) == ('finished', True)


def test_go_on_slower(config, work_dir):
    start(config, work_dir, 'crash', '--guard', 'fp32')
    for factor, left in ((0.1, 2), (0.5, 0)):
        launch = load_run(str(work_dir)).summary.launch
        more = ('--cfg-options', f'train_cfg.max_iters={8 - left}')
        assert paste(launch.train_slower(factor, *more)) == 0
    assert CommandFault.rates == pytest.approx([0.01, 0.01, 0.005, 0.005])
    (group, *_) = last_checkpoint(work_dir)['optimizer']['param_groups']
    assert group['lr'] == pytest.approx(0.005)


def test_guard_an_unguarded_run(config, work_dir):
    hooks = 'default_hooks.{0}.type=mmnanguard.{1}'.format
    options = [hooks('nan_guard', 'NanGuardHook')]
    options += [hooks('event_log', 'EventLogHook'), 'train_cfg.max_iters=4']
    start(config, work_dir, '', '--cfg-options', *options)
    code = codes_of(work_dir)['guard it']
    assert paste(f'{code} --cfg-options train_cfg.max_iters=6') == 0
    assert len(CommandFault.rates) == 2
    report = load_run(str(work_dir))
    assert report.verdict.is_healthy, report.verdict.sentence
    # Each row once, although the config had two of the hooks already.
    assert report.summary.num_kinds == dict(start=1, end=1)


def test_replay_with_weights_and_without(config, work_dir, capfd, monkeypatch):
    # A command of a path below the folder fits in the line.
    monkeypatch.chdir(work_dir.parent)
    start(config, work_dir, 'nan', '--guard', 'full')
    (row,) = load_run(str(work_dir)).summary.others['dump']
    assert row['needs'] == []
    logs = list(work_dir.glob('*/*.log'))
    (command,) = re.findall('run it: (.*)', logs[0].read_text())
    assert paste(command) == 1
    assert 'not finite' in capfd.readouterr().out
    shutil.rmtree(work_dir)
    option = 'default_hooks.dump.save_weights=False'
    start(config, work_dir, 'nan', '--guard', 'full', '--cfg-options', option)
    logs = list(work_dir.glob('*/*.log'))
    (command,) = re.findall('run it: (.*)', logs[0].read_text())
    assert words_of(command)[-1] == f'{work_dir.name}/iter_4.pth'
    capfd.readouterr()
    # The newest checkpoint is newer than the dump.
    assert (work_dir / 'iter_6.pth').exists()
    assert paste(command) == 1
    assert 'not finite' in capfd.readouterr().out


@pytest.mark.parametrize('by', ['name', 'index', 'both'])
def test_exclude(config, work_dir, tmp_path, by):
    lines = {'name': ('5 a\tb.jpg',), 'index': ('5', '17')}
    lines['both'] = ('5\t5 a\tb.jpg',)
    listed = tmp_path / 'a list.txt'
    listed.write_text('\n'.join(lines[by]))
    launch = Launch(str(config), str(work_dir))
    assert (
        paste(launch.train('--guard', 'fp32', '--exclude', str(listed))) == 0
    )
    assert '5 a\tb.jpg' not in CommandFault.names
    assert '6 a\tb.jpg' in CommandFault.names
    assert ('17 a\tb.jpg' in CommandFault.names) == (by != 'index')


def test_exclude_what_the_report_names(config, work_dir):
    start(config, work_dir, 'nan', '--guard', 'full')
    code = codes_of(work_dir)["leave out sample '16 a\\tb.jpg'"]
    write, command = code.split(' && ')
    subprocess.run(['bash', '-c', write], check=True)
    assert paste(f'{command} --cfg-options train_cfg.max_iters=8') == 0
    assert CommandFault.names
    assert '16 a\tb.jpg' not in CommandFault.names
    # Its config leaves them out already.
    launch = load_run(str(work_dir / 'again')).summary.launch
    listed = str(work_dir / 'excluded_samples.txt')
    assert paste(launch.train('--exclude', listed)) == 0


def add_row(work_dir, record):
    """Add the row of a record before the last row of the run."""
    (path,) = work_dir.glob('*/nanguard/events.jsonl')
    *lines, last = path.read_text().splitlines()
    row = json.dumps({**record.to_row(), 'iter': 5})
    path.write_text('\n'.join([*lines, row, last, '']))


REMEDY = RemedyRow('', FP32, 'head', line_of_fp32(['head']))
AUTOPSY = Autopsy(phase='forward', module='head', remedy=FP32, repeats=True)


@pytest.mark.parametrize(
    ('record', 'text'),
    [
        (REMEDY, "make the remedy permanent: 'head' in float32"),
        (AUTOPSY, "run 'head' in float32"),
    ],
)
def test_run_a_module_in_float32(config, work_dir, record, text):
    start(config, work_dir, '', '--guard', 'full')
    assert CommandFault.in_fp32 == []
    add_row(work_dir, record)
    code = codes_of(work_dir)[text]
    assert paste(f'{code} train_cfg.max_iters=8') == 0
    assert CommandFault.in_fp32 == ['head']


def test_the_line_of_a_remedy_in_a_config(config, work_dir, tmp_path):
    """The file that a user writes beside a config keeps all other hooks."""
    path = config.parent / 'child.py'
    path.write_text(f"_base_ = ['{config.name}']\n{REMEDY.config}\n")
    assert start(path, work_dir, '', '--guard', 'fp32') == 0
    assert CommandFault.in_fp32 == ['head']
    assert (work_dir / 'iter_2.pth').exists()


@pytest.mark.parametrize(
    ('line', 'key', 'value'),
    [
        (
            'optim_wrapper.clip_grad=dict(max_norm=22)',
            'clip_grad',
            dict(max_norm=22),
        ),
        (
            'optim_wrapper.guard=dict(max_consecutive_skips=50, spike=dict('
            "action='clip'), max_skip_rate=None)",
            'guard',
            dict(
                max_consecutive_skips=50,
                spike=dict(action='clip'),
                max_skip_rate=None,
            ),
        ),
        ("optim_wrapper.guard.check_step='always'", 'guard', None),
    ],
)
def test_lines_that_messages_name(config, work_dir, line, key, value):
    launch = Launch(str(config), str(work_dir))
    assert paste(launch.train('--guard', 'fp32', '--cfg-options', line)) == 0
    assert CommandFault.settings[key] == (value or dict(check_step='always'))


def test_clip_where_the_config_has_none(config, work_dir):
    config.write_text(f'{CONFIG}optim_wrapper.update(clip_grad=None)\n')
    launch = Launch(str(config), str(work_dir))
    options = ('--cfg-options', 'optim_wrapper.clip_grad=dict(max_norm=2.5)')
    assert paste(f'{launch.train_slower(0.1, *options)} --guard fp32') == 0
    assert CommandFault.settings.clip_grad == dict(max_norm=2.5)
    assert CommandFault.rates[0] == pytest.approx(0.01)


@pytest.mark.parametrize('value', ['dict(print(1))', 'dict(a=b)', 'dict(a='])
def test_values_that_are_no_constants(config, work_dir, value, capsys):
    option = f'optim_wrapper.clip_grad={value}'
    with pytest.raises(SystemExit) as caught:
        start(config, work_dir, '', '--cfg-options', option)
    assert caught.value.code == 2
    assert f'{value} is no dict of constants' in capsys.readouterr().err


def test_exclude_without_a_list(config, work_dir, capsys):
    assert start(config, work_dir, '', '--exclude', 'nowhere.txt') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'error: GuardConfigError: nowhere.txt, a list of samples' in line


def test_the_checkpoint_to_go_on_with(config, work_dir, capsys):
    start(config, work_dir, '', '--guard', 'fp32')
    assert scan_checkpoints.main([str(work_dir)]) == 0
    advice = capsys.readouterr().out.split('go on with ')[1].strip()
    launch = Launch(str(config), str(work_dir))
    more = '--cfg-options train_cfg.max_iters=8'
    assert paste(f'{launch.train()} {advice} {more}') == 0
    assert len(CommandFault.rates) == 2


def test_paths_that_look_like_options(config, work_dir, monkeypatch, capsys):
    work_dir = work_dir.with_name('-work')
    start(config, work_dir, 'crash', '--guard', 'fp32')
    monkeypatch.chdir(work_dir.parent)
    code = codes_of('-work')['resume it once the reason is repaired']
    assert paste(code) == 0
    capsys.readouterr()
    assert scan_checkpoints.main(['./-work']) == 0
    advice = capsys.readouterr().out.split('go on with ')[1].strip()
    launch = Launch(str(config), str(work_dir))
    more = '--cfg-options train_cfg.max_iters=8'
    assert paste(f'{launch.train()} {advice} {more}') == 0
    assert len(CommandFault.rates) == 4


def test_in_a_real_shell(config, work_dir):
    """The whole way once, in a process of its own."""
    launch = Launch(str(config), str(work_dir))
    more = ['--cfg-options', 'custom_hooks=[]', 'train_cfg.max_iters=1']
    more.append('train_dataloader.dataset.type=ToyData')
    environment = dict(
        os.environ,
        PATH=os.pathsep.join([str(Path(sys.executable).parent), '/bin']),
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    done = subprocess.run(
        ['bash', '-c', launch.train('--guard', 'fp32', *more)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert load_run(str(work_dir)).state == 'finished'


TRAIN = '-m mmnanguard train c.py --work-dir w'


@pytest.mark.parametrize(
    ('launcher', 'ranks', 'local', 'command'),
    [
        ('none', 1, 1, f'python {TRAIN}'),
        ('pytorch', 8, 8, f'torchrun --nproc_per_node=8 {TRAIN}'),
        # What is not known is in capitals, and fails when it is pasted.
        (
            'pytorch',
            16,
            8,
            'torchrun --nproc_per_node=8 --nnodes=2 --node_rank=NODE_RANK '
            f'--master_addr=MASTER_ADDR {TRAIN}',
        ),
        (
            'slurm',
            16,
            8,
            'srun SRUN_OPTIONS --ntasks=16 --ntasks-per-node=8 python '
            f'{TRAIN}',
        ),
        ('mpi', 4, 4, f'mpirun -np 4 -x MASTER_ADDR=127.0.0.1 python {TRAIN}'),
        (
            'mpi',
            16,
            8,
            'mpirun -np 16 -H HOSTS -x MASTER_ADDR=MASTER_ADDR python '
            f'{TRAIN}',
        ),
    ],
)
def test_ranks(launcher, ranks, local, command):
    run = Launch('c.py', 'w', launcher, ranks, local)
    if launcher != 'none':
        command += f' --launcher {launcher}'
    assert run.train('--resume') == f'{command} --resume'


@pytest.mark.parametrize(
    ('is_over', 'rest'), [(False, 'w --resume'), (True, 'w/again')]
)
def test_a_run_that_is_over_begins_anew(is_over, rest):
    command = Launch('c.py', 'w', is_over=is_over).train_on('--exclude', 'f')
    start = 'python -m mmnanguard train c.py --work-dir'
    assert command == f'{start} {rest} --exclude f'


@pytest.mark.parametrize(
    ('variables', 'ranks', 'local'),
    [
        (dict(), 4, 4),
        (dict(LOCAL_WORLD_SIZE='8'), 16, 8),
        # torchrun in a job of slurm, which has a task for each node.
        (dict(LOCAL_WORLD_SIZE='8', SLURM_TASKS_PER_NODE='1(x2)'), 16, 8),
        (dict(SLURM_TASKS_PER_NODE='8(x2)'), 16, 8),
        (
            dict(SLURM_STEP_TASKS_PER_NODE='4', SLURM_TASKS_PER_NODE='8(x2)'),
            4,
            4,
        ),
        (dict(OMPI_COMM_WORLD_LOCAL_SIZE='2'), 4, 2),
        (dict(SLURM_TASKS_PER_NODE='8(x2)'), 1, 1),
        (dict(LOCAL_WORLD_SIZE='many'), 4, 4),
    ],
)
def test_ranks_of_a_node(monkeypatch, variables, ranks, local):
    for name in run_start.LOCAL_SIZES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_start, 'get_world_size', lambda: ranks)
    assert run_start.local_world_size() == local


def test_a_command_for_several_nodes_fails_until_it_is_completed():
    """A command that waited for other nodes for ever would be worse."""
    command = Launch('c.py', 'w', 'pytorch', 2, 1).train()
    words = [sys.executable, '-m', 'torch.distributed.run']
    ended = subprocess.run(
        [*words, *command.split()[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert 'NODE_RANK' in ended.stderr
