"""tools/doctor.py: its findings, its last line, and its exit status."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from toys import ToyData

from mmnanguard.core.launch import tool_command
from tools import train

TOOL = 'doctor'
ROOT = Path(__file__).parents[2]
CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['toys'])
model = dict(type='ToyNet')
train_dataloader = dict(
    dataset=dict(type='ToyData', size=24), batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False))
train_cfg = dict(by_epoch=False, max_iters=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
"""
GUARD = """
optim_wrapper.update(type='mmnanguard.NanGuardOptimWrapper')
default_hooks.update(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'))
"""


@MODELS.register_module()
class OwnStepNet(BaseModel):
    """A model that updates past its wrapper."""

    def train_step(self, data, optim_wrapper):
        optim_wrapper.optimizer.step()


@HOOKS.register_module()
class DoctoredHook(Hook):
    """A hook with whatever the doctor looks for."""

    def before_train(self, runner):
        runner.model.register_comm_hook(None, None)

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if torch.isnan(outputs['loss']):
            raise RuntimeError

    def after_guard_evnt(self, runner, event):
        pass


@HOOKS.register_module()
class OwnEMAHook(Hook):
    """A hook whose averages nobody knows."""


@DATASETS.register_module()
class SpoiltData(ToyData):
    """Data of which sample 1 is not finite, or cannot be loaded."""

    def __init__(self, size, is_broken=False):
        super().__init__(size)
        self.is_broken = is_broken

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if index == 1 and self.is_broken:
            raise OSError('no such image')
        if index == 1:
            item['inputs'] = item['inputs'] * float('nan')
        return item


@pytest.fixture
def look(tool, tmp_path, capsys, monkeypatch):
    """Return the exit status and the lines on a config."""
    monkeypatch.chdir(tmp_path)

    def examine(text, *options, name='config.py'):
        (tmp_path / name).write_text(text)
        status = tool.main([name, *options])
        shown = capsys.readouterr().out
        assert 'Traceback' not in shown
        return status, shown.splitlines()

    return examine


def has(lines, level, text):
    """Whether a finding of a level has a text, which lines may break."""
    whole = ' '.join(' '.join(lines).split())
    return f'{level} ' in whole and text in whole


def test_an_unguarded_config(look, capsys):
    status, lines = look(CONFIG)
    assert status == 0
    assert has(lines, 'WARN', 'The config is not guarded')
    assert has(
        lines, 'OK', 'optim_wrapper: NanGuardOptimWrapper, SGD, float32'
    )
    assert has(lines, 'OK', 'training begins from scratch')
    last = lines[-1]
    assert last == 'python -m mmnanguard train config.py --guard full'
    # Commands stay whole, everything else fits.
    for line in lines[:-1]:
        assert len(line) <= 80
    words = shlex.split(f'{last} --work-dir run')[4:]
    assert train.main(words) == 0


def test_a_guarded_config(look):
    name = "a model's $1.py"
    options = ['--cfg-options', 'train_cfg.max_iters=3']
    status, lines = look(CONFIG + GUARD, *options, '--audit', '3', name=name)
    assert status == 0
    assert has(lines, 'OK', 'on: NanGuardHook, EventLogHook')
    assert has(lines, 'OK', 'first 3 of 24 samples: all')
    # Each part that is off has the line that switches it on.
    line = '        default_hooks.autopsy.type=mmnanguard.AutopsyHook'
    assert line in lines
    assert lines[-1] == (
        'python -m mmnanguard train ' + shlex.join([name, *options])
    )


@pytest.mark.parametrize('language', ['en', 'zh_cn'])
def test_the_page(tool, tmp_path, capsys, monkeypatch, language):
    """The lines of get_started.md are those of a real look."""
    monkeypatch.chdir(ROOT)
    page = (ROOT / 'docs' / language / 'get_started.md').read_text()
    (shown,) = re.findall(r'```text\n(versions\n.*?)```', page, re.S)
    options = ['--work-dir', str(tmp_path)]
    name = 'configs/digits/plain_fp32.py'
    assert tool.main([name, *options, '--audit', '50']) == 0
    printed = capsys.readouterr().out.replace(f' --work-dir {tmp_path}', '')
    # Versions differ.
    assert printed.split('config\n')[1] == shown.split('config\n')[1]


def test_a_launcher(look):
    words = look(CONFIG, '--launcher=pytorch')[1][-1].split()
    assert words[0] == 'torchrun'
    assert words.count('--launcher') == 1


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ("optim_wrapper['type'] = 'ApexOptimWrapper'", 'FAIL', 'Apex cannot'),
        ("optim_wrapper['optimizer']['type'] = 'LBFGS'", 'FAIL', 'is LBFGS'),
        ("optim_wrapper['optimizer']['type'] = 'SDG'", 'FAIL', "mean 'SGD'"),
        ("model = dict(type='ToyNett')", 'FAIL', "did you mean 'ToyNet'"),
        ("default_scope = 'mmwhat'", 'FAIL', "'mmwhat', which is not insta"),
        ('del optim_wrapper', 'FAIL', 'has no optim_wrapper'),
        ("load_from = 'nowhere.pth'", 'FAIL', 'no checkpoint nowhere.pth'),
        (
            "model['init_cfg'] = dict(type='Pretrained', checkpoint='r.pth')",
            'FAIL',
            'model.init_cfg.checkpoint: there is no file r.pth',
        ),
        (
            f"{GUARD}\noptim_wrapper['guard'] = dict(max_skips=1)",
            'FAIL',
            "unknown key 'max_skips'",
        ),
        (
            f"{GUARD}\noptim_wrapper['guard'] = dict("
            "when_exhausted='rollback')",
            'FAIL',
            'default_hooks.rollback.type=mmnanguard.RollbackHook',
        ),
        (
            f"{GUARD}\ndefault_hooks['nan_guard']['schedul'] = 1",
            'FAIL',
            "did you mean 'schedule'",
        ),
        (
            f"{GUARD}\nstrategy = dict(type='DeepSpeedStrategy')",
            'FAIL',
            'passes the engine of DeepSpeedStrategy by',
        ),
        (
            f'{GUARD}\noptim_wrapper = dict(a=dict(optim_wrapper), '
            "b=dict(type='OptimWrapper', optimizer=dict(type='SGD')))",
            'FAIL',
            'optim_wrapper.b: OptimWrapper IS NOT GUARDED',
        ),
        (
            f"{GUARD}\ncustom_hooks = [dict(type='DoctoredHook')]",
            'FAIL',
            'DoctoredHook ends the run at a loss that is not finite',
        ),
    ],
)
def test_what_is_to_be_mended(look, change, level, text):
    status, lines = look(f'{CONFIG}\n{change}')
    assert status == 1
    assert has(lines, level, text)
    assert lines[-3].endswith('training should not begin yet.') or (
        lines[-2].endswith('training should not begin yet.')
    )


@pytest.mark.parametrize(
    ('change', 'level', 'text'),
    [
        ("model = dict(type='OwnStepNet')", 'WARN', 'calls optimizer.step()'),
        ('fp16 = dict(loss_scale=1.)', 'WARN', 'The config has `fp16`'),
        (
            "train_dataloader['dataset']['data_root'] = 'no/data'",
            'WARN',
            'train_dataloader.dataset.data_root: there is no no/data here',
        ),
        ("model['frozen_stages'] = 1", 'OK', 'judged: model.frozen_stages=1'),
        (
            "custom_hooks = [dict(type='EMAHook')]",
            'OK',
            'EMAHook leaves out rejected updates',
        ),
        (
            "custom_hooks = [dict(type='OwnEMAHook')]",
            'WARN',
            'OwnEMAHook may average weights also after a rejected update',
        ),
        (
            "custom_hooks = [dict(type='CheckInvalidLossHook')]",
            'WARN',
            'CheckInvalidLossHook ends the run at a loss that is not finite',
        ),
        (
            'optim_wrapper.update(accumulative_counts=4, '
            "type='AmpOptimWrapper', dtype='bfloat16', "
            'clip_grad=dict(max_norm=3))',
            'OK',
            'bfloat16, clip_grad max_norm=3, 4 micro-batches per update',
        ),
    ],
)
def test_what_one_should_know(look, change, level, text):
    status, lines = look(f'{CONFIG}\n{change}')
    assert status == 0
    assert has(lines, level, text)


def test_a_hook_of_ones_own(look):
    hook = "custom_hooks = [dict(type='DoctoredHook')]"
    _, lines = look(f'{CONFIG}{GUARD}{hook}')
    assert has(lines, 'WARN', 'registers a communication hook')
    assert has(lines, 'WARN', 'Did you mean after_guard_event(self, runner')


def test_a_project_that_is_installed_and_broken(look, tmp_path, monkeypatch):
    """MMEngine itself would call its types unknown."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'mmbroken').mkdir()
    (tmp_path / 'mmbroken' / '__init__.py').touch()
    file = tmp_path / 'mmbroken' / 'registry.py'
    file.write_text("raise RuntimeError('mmcv is too old')")
    changes = "default_scope = 'mmbroken'\nmodel = dict(type='BrokenNet')"
    status, lines = look(f'{CONFIG}\n{changes}')
    assert status == 1
    assert has(lines, 'FAIL', 'RuntimeError: mmcv is too old')
    assert not has(lines, 'FAIL', 'BrokenNet')


REGISTRY = """
from mmengine.registry import MODELS as ROOT, Registry
MODELS = Registry(
    'model', parent=ROOT, scope='mmwhole', locations=['mmwhole.models'])
"""
MODEL = """
from mmengine.model import BaseModel
from .registry import MODELS
@MODELS.register_module()
class WholeNet(BaseModel):
    pass
"""


def test_a_type_of_the_default_scope(look, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'mmwhole').mkdir()
    texts = {'__init__': '', 'registry': REGISTRY, 'models': MODEL}
    for name, text in texts.items():
        (tmp_path / 'mmwhole' / f'{name}.py').write_text(text)
    changes = "default_scope = 'mmwhole'\nmodel = dict(type='WholeNet')"
    status, _ = look(f'{CONFIG}\n{changes}')
    assert status == 0


OLD = """
optimizer = dict(type='SGD')
lr_config = dict(policy='step')
total_epochs = 3
"""


def test_a_config_of_1x(look):
    status, lines = look(OLD, name='old one.py')
    assert status == 1
    words = ('old one.py', '--out', 'migrated')
    assert lines[-1] == tool_command('migrate_config', *words)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(', 'SyntaxError'),
        ('model = unknown', "NameError: name 'unknown' is not defined"),
        ("_base_ = 'nowhere.py'", 'nowhere.py'),
        ("_base_ = ['a.py', 'b.py']", 'Duplicate key'),
        ("custom_imports = dict(imports=['no_such'])", "find 'no_such'"),
        (f"{OLD}custom_imports = dict(imports=['no_such'])", 'of mmcv 1.x'),
        ("_base_ = 'mmdet::x/y.py'", 'mim install mmdet'),
        ('from mmdet.models import X\nmodel = dict(type=X)', 'mim install'),
        (None, 'there is no such config'),
    ],
)
def test_a_config_that_cannot_be_read(look, tool, tmp_path, text, message):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('key = 1')
    if text is None:
        assert tool.main(['nothing.py']) == 2
        return
    status, lines = look(text)
    assert status == 2
    assert has(lines, 'FAIL', message)


def test_the_root_of_a_project_that_python_does_not_know(look, tmp_path):
    for folder in ('my project/configs', 'my project/lonely'):
        (tmp_path / folder).mkdir(parents=True)
    name = 'my project/configs/config.py'
    text = "custom_imports = dict(imports=['lonely.models'])"
    status, lines = look(text, name=name)
    assert status == 2
    assert shlex.split(lines[-1]) == [
        f'PYTHONPATH={tmp_path / "my project"}',
        *shlex.split(tool_command('doctor', name)),
    ]


@pytest.mark.parametrize('options', [['--audit', '0'], ['--audi', '3'], []])
def test_a_wrong_command_line(tool, capsys, options):
    words = ['config.py', *options] if options else []
    with pytest.raises(SystemExit) as caught:
        tool.main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ('keys', 'status', 'level', 'text'),
    [
        (
            '',
            0,
            'WARN',
            '1 bad of the first 3 of 24 samples. train/000001.jpg',
        ),
        (', is_broken=True', 1, 'FAIL', 'OSError: no such image'),
        (', sizes=3', 1, 'FAIL', 'The training dataset cannot be built'),
    ],
)
def test_an_audit(look, keys, status, level, text):
    data = f"dict(type='SpoiltData', size=24{keys})"
    change = f"train_dataloader['dataset'] = {data}"
    result, lines = look(f'{CONFIG}\n{change}', '--audit', '3')
    assert result == status
    assert has(lines, level, text)


def test_a_run_to_go_on_with(look, tmp_path):
    """The runs are finished, unfinished, and bad."""
    options = ['--work-dir', 'w']
    status, lines = look(CONFIG + GUARD, *options)
    assert not lines[-1].endswith('--resume')
    assert train.main(['config.py', *options]) == 0
    status, lines = look(CONFIG + GUARD, *options)
    assert status == 0
    assert has(lines, 'WARN', 'w holds a run that has ended (iter_4.pth)')
    assert not lines[-1].endswith('--resume')

    longer = [*options, '--cfg-options', 'train_cfg.max_iters=6']
    status, lines = look(CONFIG + GUARD, *longer)
    assert has(lines, 'WARN', 'holds a run that has not ended; ')
    assert lines[-1].endswith('train_cfg.max_iters=6 --resume')

    file = tmp_path / 'w' / 'iter_4.pth'
    saved = torch.load(file, weights_only=False)
    saved['state_dict']['head.weight'][:] = float('nan')
    torch.save(saved, file)
    status, lines = look(CONFIG + GUARD, *longer)
    assert status == 0
    assert has(lines, 'WARN', 'resuming from the last clean one')
    status, lines = look(CONFIG, '--cfg-options', 'load_from=w/iter_4.pth')
    assert status == 1
    assert has(lines, 'FAIL', "bad ('head.weight' (weight) is nan)")
    assert lines[-1] == tool_command('scan_checkpoints', 'w')
    status, lines = look(CONFIG, '--resume', 'w/iter_2.pth')
    assert has(lines, 'OK', 'w/iter_2.pth: clean, of iteration 2')
    assert lines[-1].endswith('--resume w/iter_2.pth --guard full')


@pytest.mark.parametrize(
    ('weights', 'status', 'text'),
    [
        ([], 0, 'NaN in loss at iteration 4: skip, grad at iteration 8: skip'),
        (['w'], 1, 'w is not finite'),
    ],
)
def test_a_drill(look, tool, monkeypatch, weights, status, text):
    import fire_drill

    def run(title, cfg, folder):
        rows = []
        for fault in cfg.default_hooks.get('fire_drill', {}).get('faults', ()):
            row = dict(kind='update', iter=fault['iter'], action='skip')
            rows.append(
                dict(row, cause='loss_nonfinite', params=[], samples=[])
            )
        bad = weights if title == 'guarded' else []
        return dict(run=title, exit=0, seconds=1, bad_weights=bad), rows

    monkeypatch.setattr(fire_drill, 'run', run)
    result, lines = look(CONFIG, '--drill')
    assert result == status
    assert has(lines, 'OK' if not status else 'FAIL', text)
