"""Configs of 1.x in the style of the projects that people migrate from."""

import importlib
from pathlib import Path

import pytest
import torch
from migrating import FP16, Migration
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from toys import ToyNet, loader, make_data

from mmnanguard.migrate import migrate
from mmnanguard.optim.apply_guard import load_overlay

ROOT = Path(__file__).parents[2]

DETECTOR = """\
model = dict(type='TwoStage', backbone=dict(type='ResNet', depth=50))
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=2,
    train=dict(type='Boxes', ann_file='train.json', pipeline=[]),
    val=dict(type='Boxes', ann_file='val.json', pipeline=[]),
    test=dict(type='Boxes', ann_file='val.json', pipeline=[]))
evaluation = dict(interval=1, metric='bbox')
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001,
    step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
checkpoint_config = dict(interval=1)
log_config = dict(
    interval=50,
    hooks=[dict(type='TextLoggerHook'), dict(type='TensorboardLoggerHook')])
custom_hooks = [dict(type='CheckInvalidLossHook', interval=50)]
dist_params = dict(backend='nccl')
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
opencv_num_threads = 0
mp_start_method = 'fork'
fp16 = dict(loss_scale=512.)
"""
SEGMENTOR = """\
model = dict(type='EncoderDecoder', backbone=dict(type='MiT'))
optimizer = dict(
    type='AdamW',
    lr=0.00006,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    paramwise_cfg=dict(
        custom_keys={'norm': dict(decay_mult=0.), 'head': dict(lr_mult=10.)}))
optimizer_config = dict(
    type='GradientCumulativeFp16OptimizerHook', cumulative_iters=2,
    loss_scale='dynamic')
fp16 = dict()
lr_config = dict(
    policy='poly', warmup='linear', warmup_iters=1500, warmup_ratio=1e-6,
    power=1.0, min_lr=0.0, by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=160000)
checkpoint_config = dict(by_epoch=False, interval=16000)
evaluation = dict(interval=16000, metric='mIoU', pre_eval=True)
log_config = dict(
    interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
cudnn_benchmark = True
dist_params = dict(backend='nccl')
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=4,
    train=dict(
        type='RepeatDataset', times=50, dataset=dict(type='Masks')))
"""
TRANSFORMER_3D = """\
plugin = True
plugin_dir = 'projects/bev/'
num_epochs = 24
model = dict(type='BirdsEye', use_grid_mask=True)
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=4,
    train=dict(type='Cameras', queue_length=3),
    val=dict(type='Cameras', samples_per_gpu=1),
    shuffler_sampler=dict(type='DistributedGroupSampler'))
optimizer = dict(
    type='AdamW',
    lr=2e-4,
    paramwise_cfg=dict(custom_keys={'img_backbone': dict(lr_mult=0.1)}),
    weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', warmup='linear', warmup_iters=500,
    warmup_ratio=1.0 / 3, min_lr_ratio=1e-3)
total_epochs = num_epochs
evaluation = dict(interval=1)
runner = dict(type='EpochBasedRunner', max_epochs=total_epochs)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
fp16 = dict(loss_scale=512.)
checkpoint_config = dict(interval=1)
custom_hooks = [dict(type='CustomSetEpochInfoHook')]
find_unused_parameters = True
"""
RUN = """\
optimizer = dict(type='SGD', lr=0.1)
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""
CONFIGS = {
    'detector': (DETECTOR, FP16, 512.0, ['LinearLR', 'MultiStepLR']),
    'segmentor': (SEGMENTOR, FP16, 'dynamic', ['LinearLR', 'PolyLR']),
    'transformer_3d': (
        TRANSFORMER_3D,
        FP16,
        512.0,
        ['LinearLR', 'CosineAnnealingLR'],
    ),
}


class Shapes(BaseModel):
    def __init__(self):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
        self.img_backbone = torch.nn.Linear(3, 3)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.head(self.norm(inputs)).sum())


def build(cfg, tmp_path):
    """Build the parts of a run that a migration writes, with toy data."""
    cfg = Config(cfg)
    runner = Runner(
        model=Shapes(),
        work_dir=str(tmp_path / 'run'),
        train_dataloader=dict(
            dataset=list(range(8)),
            batch_size=2,
            sampler=cfg.train_dataloader.sampler,
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=cfg.default_hooks,
        log_processor=cfg.log_processor,
        visualizer=cfg.get('visualizer'),
    )
    assert runner.train_loop
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(
        runner.param_schedulers
    )
    return runner


@pytest.mark.parametrize('name', CONFIGS)
def test_a_whole_config_builds(name, tmp_path):
    text, wrapper, scale, schedulers = CONFIGS[name]
    migration = Migration(tmp_path, text)
    runner = build(migration.cfg, tmp_path)
    assert type(runner.optim_wrapper).__name__ == wrapper.split('.')[1]
    assert migration.cfg['optim_wrapper']['loss_scale'] == scale
    made = [type(scheduler).__name__ for scheduler in runner.param_schedulers]
    assert made == schedulers
    hooks = {type(hook).__name__ for hook in runner.hooks}
    assert {'NanGuardHook', 'EventLogHook'} <= hooks
    old = Config.fromstring(text, '.py')
    assert not {*migration.cfg} & {
        'optimizer',
        'optimizer_config',
        'fp16',
        'lr_config',
        'runner',
        'total_epochs',
        'data',
        'evaluation',
        'log_config',
        'checkpoint_config',
        'workflow',
        'dist_params',
    }
    assert migration.cfg['model'] == old.model.to_dict()
    assert 'datasets and pipelines' in migration.left


def test_what_they_become(tmp_path):
    segmentor = Migration(tmp_path, SEGMENTOR).cfg
    assert segmentor['optim_wrapper']['accumulative_counts'] == 2
    assert segmentor['train_cfg'] == dict(
        by_epoch=False, max_iters=160000, val_interval=16000
    )
    keys = segmentor['optim_wrapper']['paramwise_cfg']['custom_keys']
    assert keys['head'] == dict(lr_mult=10.0)
    bird = Migration(tmp_path, TRANSFORMER_3D)
    assert bird.cfg['optim_wrapper']['clip_grad']['max_norm'] == 35
    assert 'max_epochs=num_epochs' in bird.new  # total_epochs is gone
    assert bird.cfg['train_cfg']['max_epochs'] == 24
    assert 'shuffler_sampler: not migrated' in bird.left
    assert 'CustomSetEpochInfoHook was written for mmcv' in bird.left


def test_the_case_of_this_project(monkeypatch):
    """The migrated config equals the case's guarded form, which was written by
    hand.
    """
    monkeypatch.syspath_prepend(ROOT)
    folder = ROOT / 'configs' / 'cases' / 'fp16_static_scale'
    migration = migrate(folder / 'old_1x.py', load_overlay)
    assert not migration.notes.left
    new = Config.fromstring(migration.new, '.py')
    guarded = Config.fromfile(folder / 'guarded.py')
    del guarded.optim_wrapper['guard']  # the case is short
    del guarded.default_hooks['autopsy'], new.default_hooks['event_text']
    assert new.optim_wrapper == guarded.optim_wrapper
    assert new.default_hooks == guarded.default_hooks
    assert new.train_cfg == guarded.train_cfg
    for key in ('batch_size', 'num_workers'):
        assert new.train_dataloader[key] == guarded.train_dataloader[key]
    assert new.param_scheduler == []
    assert 'param_scheduler' not in guarded


class CountingSGD(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


def test_both_count_batches(tmp_path):
    """Mmcv 1.7.2's IterBasedRunner with max_iters=40 and cumulative_iters=4
    made 10 updates (measured), so max_iters is not to be multiplied.
    """
    model = ToyNet()
    optimizer = CountingSGD(model.parameters(), lr=0.1)
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=loader(make_data(40)),
        train_cfg=dict(by_epoch=False, max_iters=40),
        optim_wrapper=OptimWrapper(optimizer, accumulative_counts=4),
        default_hooks=dict(checkpoint=None),
    )
    runner.train()
    assert optimizer.steps == 10


def test_what_mmcv_saved_gives_its_weights(tmp_path):
    path, model = tmp_path / 'epoch_7.pth', ToyNet()
    saved = dict(meta=dict(epoch=7, iter=70), state_dict=model.state_dict())
    torch.save(dict(saved, optimizer={}), path)
    text = f"{RUN}resume_from = '{path}'\n"
    cfg = Migration(tmp_path, text).cfg
    runner = Runner(
        model=ToyNet(),
        work_dir=str(tmp_path / 'run'),
        train_dataloader=loader(make_data(2)),
        train_cfg=cfg['train_cfg'],
        optim_wrapper=cfg['optim_wrapper'],
        load_from=cfg['load_from'],
        resume=cfg['resume'],
    )
    runner.load_or_resume()
    assert runner.epoch == 0
    for name, value in runner.model.state_dict().items():
        assert value.equal(saved['state_dict'][name])


DIGITS = """\
# The digits, as a project of 1.x would write them.
default_scope = 'mmengine'
custom_imports = dict(
    imports=['configs.digits.digits'], allow_failed_imports=False)
model = dict(
    type='DigitsNet',
    norm_cfg=dict(type='BN'),
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[4.886], std=[6.018]))
pipeline = [dict(type='PackDigits')]
data = dict(
    samples_per_gpu=32,
    workers_per_gpu=0,
    train=dict(type='DigitsDataset', split='train', pipeline=pipeline),
    val=dict(type='DigitsDataset', split='val', pipeline=pipeline),
    val_dataloader=dict(samples_per_gpu=180))
evaluation = dict(interval=1)
optimizer = dict(type='AdamW', lr=0.01, weight_decay=0.05)
optimizer_config = dict(
    type='SkipNanOptimizerHook', max_skips=5, grad_clip=dict(max_norm=35))
fp16 = dict(loss_scale=1024.)
lr_config = dict(
    policy='CosineAnnealing', by_epoch=False, min_lr=0,
    warmup='linear', warmup_iters=45, warmup_ratio=0.1)
runner = dict(type='EpochBasedRunner', max_epochs=2)
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
log_config = dict(interval=15, hooks=[dict(type='TextLoggerHook')])
seed = 0
"""


def test_the_digits_train_on_through_a_fault(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    importlib.import_module('configs.digits.digits')
    cfg = Config(Migration(tmp_path, DIGITS).cfg)
    # What is left to the user, and the fault.
    cfg.val_evaluator = dict(type='DigitsAccuracy')
    cfg.work_dir = str(tmp_path / 'run')
    cfg.default_hooks.drill = dict(
        type='mmnanguard.FaultInjectionHook',
        faults=[
            dict(iter=20, site='loss', value='nan'),
            dict(iter=60, site='buffer', value='inf'),
        ],
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.optim_wrapper.guard.state.total_skips == 2
    tensors = [*runner.model.parameters(), *runner.model.buffers()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert (
        runner.message_hub.get_scalar('val/accuracy').current() > 60
    )  # chance: 10
