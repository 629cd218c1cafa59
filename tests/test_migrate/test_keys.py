"""The migration of each key of 1.x."""

import pytest
from migrating import FP16, FP32, Migration

MODEL = "model = dict(type='M')\n"
SGD = "optimizer = dict(type='SGD', lr=0.1)\n"
EPOCHS = "runner = dict(type='EpochBasedRunner', max_epochs=12)\n"
ITERS = "runner = dict(type='IterBasedRunner', max_iters=100)\n"
WINDOWS = (
    "optimizer_config = dict(type='GradientCumulativeOptimizerHook', "
    'cumulative_iters=4)\n'
)
HALF = dict(type=FP16, dtype='float16')
BUILT = dict(type='SGD', lr=0.1)

# 1.x, the 2.x key, its value
CASES = {
    'optimizer': (SGD, 'optim_wrapper', dict(type=FP32, optimizer=BUILT)),
    'nothing to delete': (
        'optimizer = dict(_delete_=True, type="SGD", lr=0.1)\n',
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT),
    ),
    'paramwise': (
        "optimizer = dict(type='SGD', lr=0.1, "
        'paramwise_cfg=dict(bias_lr_mult=2.0), '
        "constructor='DefaultOptimizerConstructor')\n",
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT, paramwise_cfg=dict(bias_lr_mult=2.0)),
    ),
    'no clip': (
        f'{SGD}optimizer_config = dict(grad_clip=None)\n',
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT),
    ),
    'clip': (
        f'{SGD}optimizer_config = dict(grad_clip=dict(max_norm=35, '
        'norm_type=2))\n',
        'optim_wrapper',
        dict(
            type=FP32,
            clip_grad=dict(max_norm=35, norm_type=2),
            optimizer=BUILT,
        ),
    ),
    'fp16 static': (
        f'{SGD}fp16 = dict(loss_scale=1024.)\n',
        'optim_wrapper',
        dict(**HALF, loss_scale=1024.0, optimizer=BUILT),
    ),
    'fp16 default': (
        f'{SGD}fp16 = dict()\n',
        'optim_wrapper',
        dict(**HALF, loss_scale=512.0, optimizer=BUILT),
    ),
    'fp16 dynamic': (
        f"{SGD}fp16 = dict(loss_scale='dynamic', distributed=False)\n",
        'optim_wrapper',
        dict(**HALF, loss_scale='dynamic', optimizer=BUILT),
    ),
    'fp16 dict': (
        f'{SGD}fp16 = dict(loss_scale=dict(init_scale=4096.0, '
        'growth_interval=500))\n',
        'optim_wrapper',
        dict(
            **HALF,
            loss_scale=dict(init_scale=4096.0, growth_interval=500),
            optimizer=BUILT,
        ),
    ),
    'fp16 of its own hook, and a placeholder': (
        f"{SGD}optimizer_config = dict(type='Fp16OptimizerHook', "
        'loss_scale=256., coalesce=True, grad_clip=None)\nfp16 = dict()\n',
        'optim_wrapper',
        dict(**HALF, loss_scale=256.0, optimizer=BUILT),
    ),
    'fp16 none': (
        f'{SGD}fp16 = None\n',
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT),
    ),
    'cumulative': (
        f'{SGD}{ITERS}optimizer_config = dict(cumulative_iters=4, '
        "type='GradientCumulativeOptimizerHook')\n",
        'optim_wrapper',
        dict(type=FP32, accumulative_counts=4, optimizer=BUILT),
    ),
    'cumulative fp16': (
        f'{SGD}optimizer_config = dict(cumulative_iters=2, loss_scale=64., '
        "type='GradientCumulativeFp16OptimizerHook')\n",
        'optim_wrapper',
        dict(**HALF, loss_scale=64.0, accumulative_counts=2, optimizer=BUILT),
    ),
    # 1.x counted batches, as MMEngine does: see test_both_count_batches.
    'cumulative keeps max_iters': (
        f'{SGD}{ITERS}optimizer_config = dict(cumulative_iters=4, '
        "type='GradientCumulativeOptimizerHook')\n",
        'train_cfg',
        dict(by_epoch=False, max_iters=100),
    ),
    'apex': (
        f'{SGD}fp16 = None\noptimizer_config = dict(type="DistOptimizerHook", '
        'update_interval=2, coalesce=True, bucket_size_mb=-1, use_fp16=True)',
        'optim_wrapper',
        dict(**HALF, accumulative_counts=2, optimizer=BUILT),
    ),
    'apex that is off': (
        f'{SGD}optimizer_config = dict(type="DistOptimizerHook", '
        'update_interval=1, use_fp16=False)\n',
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT),
    ),
    'apex has its runner': (
        'runner = dict(type="EpochBasedRunnerAmp", max_epochs=12)\n',
        'train_cfg',
        dict(by_epoch=True, max_epochs=12),
    ),
    'paramwise_options': (
        "optimizer = dict(type='SGD', lr=0.1, "
        'paramwise_options=dict(bias_lr_mult=2.0))\n',
        'optim_wrapper',
        dict(type=FP32, optimizer=BUILT, paramwise_cfg=dict(bias_lr_mult=2.0)),
    ),
    'detect_anomalous_params': (
        f'{SGD}optimizer_config = dict(detect_anomalous_params=True)\n'
        'find_unused_parameters = True\n',
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            detect_anomalous_params=True,
            find_unused_parameters=True,
        ),
    ),
    'runner': (EPOCHS, 'train_cfg', dict(by_epoch=True, max_epochs=12)),
    'total_epochs': (
        'total_epochs = 7\n',
        'train_cfg',
        dict(by_epoch=True, max_epochs=7),
    ),
    'evaluation': (
        f'{EPOCHS}evaluation = dict(interval=3, start=6, metric="mIoU")\n',
        'train_cfg',
        dict(by_epoch=True, max_epochs=12, val_interval=3, val_begin=6),
    ),
    'evaluation in steps': (
        f'{ITERS}evaluation = dict(interval=dict(milestones=[40, 80], '
        'interval=[20, 10, 5]))\n',
        'train_cfg',
        dict(
            by_epoch=False,
            max_iters=100,
            val_interval=20,
            dynamic_intervals=[(40, 10), (80, 5)],
        ),
    ),
    'checkpoint': (
        f'{MODEL}{ITERS}checkpoint_config = dict(interval=10, '
        'max_keep_ckpts=3)\n',
        'default_hooks',
        dict(
            checkpoint=dict(
                type='CheckpointHook',
                by_epoch=False,
                interval=10,
                max_keep_ckpts=3,
            )
        ),
    ),
    'save_best': (
        f'{MODEL}{EPOCHS}checkpoint_config = dict(interval=1)\nevaluation = '
        "dict(interval=1, save_best='auto', rule='greater')\n",
        'default_hooks',
        dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=1,
                save_best='auto',
                rule='greater',
            )
        ),
    ),
    'log_config': (
        "log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])",
        'default_hooks',
        dict(logger=dict(type='LoggerHook', interval=50)),
    ),
    'means': (
        f'{ITERS}log_config = dict(interval=50, '
        "hooks=[dict(type='TextLoggerHook')])\n",
        'log_processor',
        dict(type='LogProcessor', window_size=50, by_epoch=False),
    ),
    'iterations, as a part that knows no loop says': (
        "log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', "
        'by_epoch=False)])\n',
        'log_processor',
        dict(type='LogProcessor', window_size=50, by_epoch=False),
    ),
    'backends': (
        "log_config = dict(interval=5, hooks=[dict(type='TextLoggerHook'), "
        "dict(type='TensorboardLoggerHook'), dict(type='WandbLoggerHook', "
        "init_kwargs=dict(project='p'))])\n",
        'visualizer',
        dict(
            type='Visualizer',
            vis_backends=[
                dict(type='LocalVisBackend'),
                dict(type='TensorboardVisBackend'),
                dict(type='WandbVisBackend', init_kwargs=dict(project='p')),
            ],
        ),
    ),
    'resume': ("resume_from = 'a.pth'\n", 'resume', False),
    'resume where': ("resume_from = 'a.pth'\n", 'load_from', 'a.pth'),
    'auto_resume': ('auto_resume = True\n', 'resume', True),
    # With it, MMEngine would resume what only gives weights.
    'auto_resume and weights': (
        "auto_resume = True\nload_from = 'a.pth'\n",
        'resume',
        False,
    ),
    'environment': (
        "dist_params = dict(backend='nccl')\ncudnn_benchmark = True\n"
        "opencv_num_threads = 0\nmp_start_method = 'fork'\n",
        'env_cfg',
        dict(
            dist_cfg=dict(backend='nccl'),
            cudnn_benchmark=True,
            mp_cfg=dict(opencv_num_threads=0, mp_start_method='fork'),
        ),
    ),
    'seed': (
        'seed = 3\ndeterministic = True\n',
        'randomness',
        dict(seed=3, deterministic=True),
    ),
    'data': (
        'data = dict(samples_per_gpu=2, workers_per_gpu=4, '
        "persistent_workers=True, train=dict(type='D', pipeline=[]))\n",
        'train_dataloader',
        dict(
            batch_size=2,
            num_workers=4,
            persistent_workers=True,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='D', pipeline=[]),
        ),
    ),
    'data in iterations': (
        f"{ITERS}data = dict(samples_per_gpu=2, train=[dict(type='D'), "
        "dict(type='E')])\n",
        'train_dataloader',
        dict(
            batch_size=2,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(
                type='ConcatDataset', datasets=[dict(type='D'), dict(type='E')]
            ),
        ),
    ),
    'validation data': (
        'data = dict(samples_per_gpu=2, workers_per_gpu=4, val=dict('
        "type='D'), val_dataloader=dict(samples_per_gpu=8))\n",
        'val_dataloader',
        dict(
            batch_size=8,
            num_workers=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='D'),
        ),
    ),
    'as many as the dataset says': (
        "data = dict(samples_per_gpu=2, val=dict(type='D', "
        'samples_per_gpu=4))\n',
        'val_dataloader',
        dict(
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='D'),
        ),
    ),
    'the size has other names': (
        'data = dict(videos_per_gpu=8, workers_per_gpu=2, val=dict('
        "type='D'), val_dataloader=dict(imgs_per_gpu=3), "
        'val_workers_per_gpu=4)\n',
        'val_dataloader',
        dict(
            num_workers=4,
            batch_size=3,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='D'),
        ),
    ),
    'the size of training has other names': (
        'data = dict(imgs_per_gpu=2, train_dataloader=dict(batch_size=4), '
        "train=dict(type='D'))\n",
        'train_dataloader',
        dict(
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='D'),
        ),
    ),
    'ema': (
        "total_epochs = 1\ncustom_hooks = [dict(type='EMAHook', "
        'momentum=0.001, interval=2, warm_up=100, priority=49)]\n',
        'custom_hooks',
        [dict(type='EMAHook', momentum=1e-6, interval=2, priority=49)],
    ),
    'no schedule': (
        "lr_config = dict(policy='fixed')\n",
        'param_scheduler',
        [],
    ),
    'momentum': (
        f"{EPOCHS}lr_config = dict(policy='fixed')\nmomentum_config = dict("
        "policy='step', step=[3])\n",
        'param_scheduler',
        [
            dict(
                type='MultiStepMomentum',
                milestones=[3],
                gamma=0.5,
                by_epoch=True,
            )
        ],
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_what_it_becomes(case, tmp_path):
    old, key, value = CASES[case]
    migration = Migration(tmp_path, old)
    migrated = migration.cfg[key]
    if key == 'default_hooks':
        migrated.pop('nan_guard', None)
        migrated.pop('event_log', None)
    assert migrated == value


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('workflow', "[('train', 1)]"),
        ('gpu_ids', 'range(8)'),
        ('checkpoint_config', 'None'),
    ],
)
def test_what_goes(key, value, tmp_path):
    text = f'{MODEL}{key} = {value}\nlog_level = 1\n'
    migration = Migration(tmp_path, text)
    assert key not in migration.cfg
    assert migration.cfg['log_level'] == 1


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (f'{SGD}fp16 = dict()', "512 (mmcv's default) was fixed"),
        (
            f'{SGD}{ITERS}{WINDOWS}',
            'line 3: both count batches, not updates, so max_iters stays; a w',
        ),
        (
            f'{SGD}{EPOCHS}{WINDOWS}',
            'line 3: a window is one update, and one bad',
        ),
        (f'{EPOCHS}evaluation = dict(interval=5)', 'after the last epoch'),
        (f'{EPOCHS}evaluation = dict(start=0)', 'once before training'),
        (f'{EPOCHS}evaluation = dict(interval=2, start=5)', 'counted the int'),
        (f"{MODEL}evaluation = dict(save_best='bbox_mAP')", "'coco/bbox_mAP'"),
        ("data = dict(val=dict(type='D'))", 'batch_size is 1'),
        ("seed = 1\ncustom_hooks = [dict(type='EMAHook')]", 'state_dict'),
        (
            "seed = 1\ncustom_hooks = [dict(type='EMAHook', momentum=0.1)]",
            'MomentumAnnealingEMA',
        ),
        (
            f'{MODEL}checkpoint_config = dict(create_symlink=True)',
            'create_symlink',
        ),
    ],
)
def test_what_is_told_to_have_changed(text, message, tmp_path):
    assert message in Migration(tmp_path, f'{text}\n').changed


CANNOT = {
    'optimizer = dict(g=dict(type="SGD", lr=1), d=dict(type="SGD", lr=1))': (
        'line 1: several optimizers'
    ),
    f'{SGD}optimizer_config = dict(type="MyHook")': 'line 2: MyHook is a clas',
    f'{SGD}fp16 = dict(loss_scale=dict(mode="dynamic", scale_window=9))': (
        "mmcv's own scaler"
    ),
    'optimizer = dict(type="SGD", lr=1, constructor="Mine")': 'Mine: in 2.x a',
    'optimizers = dict(g=dict(type="SGD", lr=1))': 'line 1: several opt',
    f'{EPOCHS}lr_config = dict(policy="Inv", gamma=1)': (
        "policy 'Inv' has no scheduler"
    ),
    f'{EPOCHS}lr_config = dict(warmup_iters=9)': 'it has no policy',
    f'{MODEL}lr_config = dict(policy="poly", power=1.0)': (
        'how long training takes'
    ),
    f'{EPOCHS}lr_config = dict(policy="step", step=[1], gama=2)': (
        'gama: not a key'
    ),
    f'{ITERS}lr_config = dict(policy="step", step=[1], by_epoch=True)': (
        'passes over the data'
    ),
    f'{ITERS}lr_config = dict(policy="fixed", warmup="linear", '
    'warmup_iters=1, warmup_by_epoch=True)': 'in an epoch',
    f'{SGD}{EPOCHS}lr_config = dict(policy="step", step=[1, 2], '
    'min_lr=0.02)': ('have no floor'),
    f'{EPOCHS}lr_config = dict(policy="fixed")\n'
    'momentum_config = dict(policy="OneCycle")': 'one-cycle schedule of mom',
    f'{EPOCHS}lr_config = dict(policy="fixed")\nmomentum_config = '
    'dict(policy="step", step=[1], warmup="linear", warmup_iters=1)': (
        'warm-up of a momentum'
    ),
    'runner = dict(type="MyRunner", max_epochs=1)': 'no runner of mmcv',
    'workflow = [("train", 1), ("val", 1)]': "its 'val' computed losses",
    'resume_from = "a.pth"': 'cannot be resumed, for it has no message_hub',
    'auto_resume = True\nload_from = "a.pth"': 'line 1: resume=True would res',
    f'{EPOCHS}evaluation = dict(interval=1, metric="bbox")': "metric='bbox'",
    f'{EPOCHS}evaluation = dict(by_epoch=False, interval=9)': 'not the unit',
    'log_config = dict(hooks=[dict(type="PaviLoggerHook")])': 'no backend',
    'log_config = dict(hooks=[dict(type="WandbLoggerHook", log_dir=1)])': (
        'log_dir of WandbLoggerHook'
    ),
    'data = dict(train=dict(type="D"), sampler_cfg=1)': 'sampler_cfg: not mi',
    'data = dict(train=dict(type="D"), train_drop_last=1)': 'last: not migra',
    'data = dict(train=dict(type="D", pipeline=[]))': 'datasets and pipelines',
    f'{SGD}optimizer_config = dict(type="DistOptimizerHook", odd=True)': (
        'odd: not migrated'
    ),
    'optimizer = None': 'there is nothing to guard',
    f'{EPOCHS}evaluation = [dict(interval=1)]': 'evaluation is no dict',
    f'{EPOCHS}evaluation = dict(interval=dict(a=1))': 'val_interval by hand',
    f'{EPOCHS}evaluation = dict(interval=0)': 'val_interval by hand',
    'seed = 1\nimg_norm_cfg = dict(mean=[1])': 'line 2: normalising moves',
    'seed = 1\nmodel = dict(type="M")': 'default_scope',
    'seed = 1\ncustom_hooks = [dict(type="Mine")]': 'line 2: Mine was written',
    f'{SGD}if True:\n    fp16 = dict()': 'fp16 is set or changed at lines 2',
    f'{SGD}optimizer["lr"] = 1': 'set or changed at lines 1, 2',
    f'{SGD}optimizer.update(lr=1)': 'set or changed at lines 1, 2',
    'seed = 1\nseed = 2': 'set or changed at lines 1, 2',
    f'{SGD}lr = optimizer["lr"]': 'optimizer stays, because line 2 reads it',
    f'{SGD}optim_wrapper = dict(optimizer=dict(type="SGD", lr=1))': (
        'line 1: optimizer has no effect: MMEngine reads optim_wrapper (line 2'
    ),
    'optim_wrapper = dict(optimizer=dict(type="SGD", lr=1))\nfp16 = dict()': (
        'line 2: fp16 has no effect'
    ),
    'param_scheduler = []\nlr_config = dict(policy="fixed")': (
        'line 2: lr_config has no effect'
    ),
}


@pytest.mark.parametrize('text', CANNOT)
def test_what_it_cannot_do(text, tmp_path):
    assert CANNOT[text] in Migration(tmp_path, f'{text}\n').left


LONG = "[dict(type='Metric', path='some/where/" + 50 * 'x' + "')] * 3"


@pytest.mark.parametrize(
    'text',
    [
        *CANNOT,
        f'{SGD}evaluation = dict(interval=1, metrics={LONG})',
        f'{SGD}evaluation = dict(interval=dict(a={LONG}))',
        f'{SGD}custom_hooks = [dict(type="Mine", data={LONG})]',
        f'{SGD}optimizer_config = dict(type="Mine", data={LONG})',
        f'{SGD}optimizers = dict(a={LONG})',
    ],
)
def test_a_note_is_one_short_line(text, tmp_path):
    notes = Migration(tmp_path, f'{text}\n').notes
    for lines in notes.sections().values():
        for line in lines:
            assert '\n' not in line
            assert len(line) < 190, line


def test_names_are_followed_and_kept(tmp_path):
    text = (
        'lr = 1e-3\n'
        'names = ["a", "b"]\n'
        'epochs = 3 * len(names)\n'
        'def scale():\n    return 2.0 ** 9\n'
        'optimizer = dict(type="SGD", lr=lr, momentum=0.9)\n'
        'fp16 = dict(loss_scale=scale())\n'
        'lr_config = dict(policy="CosineAnnealing", min_lr=lr / 100)\n'
        'runner = dict(type=f"{"Epoch"}BasedRunner", max_epochs=epochs)\n'
    )
    text = text.replace('f"{"Epoch"}Based', "f\"{'Epoch'}Based")
    migration = Migration(tmp_path, text)
    assert migration.cfg['optim_wrapper'] == dict(
        **HALF,
        loss_scale=512.0,
        optimizer=dict(type='SGD', lr=1e-3, momentum=0.9),
    )
    assert migration.cfg['train_cfg']['max_epochs'] == 6
    assert 'eta_min=lr / 100' in migration.new
    assert 'max_epochs=epochs' in migration.new


def test_a_dict_with_a_name_is_named_still(tmp_path):
    text = (
        'rules = dict(bias_lr_mult=2.0)\n'
        'val = dict(type="D", samples_per_gpu=2)\n'
        'optimizer = dict(type="SGD", lr=1, paramwise_cfg=rules)\n'
        'data = dict(val=val)\n'
    )
    migration = Migration(tmp_path, text)
    assert 'paramwise_cfg=rules,' in migration.new
    loader = migration.cfg['val_dataloader']
    assert loader['dataset'] == dict(type='D')
    assert loader['batch_size'] == 2


def test_a_name_that_comes_later_is_not_used(tmp_path):
    text = (
        'lr_config = dict(policy="CosineAnnealing", min_lr=0)\n'
        'epochs = 9\n'
        'runner = dict(type="EpochBasedRunner", max_epochs=epochs)\n'
    )
    migration = Migration(tmp_path, text)
    assert migration.cfg['param_scheduler'][0]['T_max'] == 9
    assert migration.new.index('T_max=9') < migration.new.index('epochs = 9')


def test_a_name_that_goes_is_not_used(tmp_path):
    text = (
        f'{MODEL}evaluation = dict(interval=2)\n'
        'checkpoint_config = dict(interval=evaluation["interval"])\n'
    )
    hooks = Migration(tmp_path, text).cfg['default_hooks']
    assert hooks['checkpoint']['interval'] == 2


def test_what_has_no_effect_gets_none(tmp_path):
    text = 'optim_wrapper = dict(optimizer=dict(type="SGD"))\nfp16 = dict()\n'
    migration = Migration(tmp_path, text)
    assert migration.cfg['optim_wrapper']['type'] == FP32
    assert 'fp16 = dict()' in migration.new


def test_the_workers_of_inherited_loaders(tmp_path):
    base = "data = dict(imgs_per_gpu=2, workers_per_gpu=2, val=dict(type='D'))"
    migration = Migration(
        tmp_path,
        "_base_ = 'base.py'\ndata = dict(imgs_per_gpu=4, workers_per_gpu=8)\n",
        base=base,
    )
    assert migration.cfg['train_dataloader'] == dict(
        batch_size=4, num_workers=8
    )
    # Evaluation does not take the batch size of training.
    assert migration.cfg['val_dataloader'] == dict(num_workers=8)
    assert 'test_dataloader' not in migration.cfg


def test_betas_are_no_learning_rate(tmp_path):
    migration = Migration(
        tmp_path,
        "optimizer = dict(type='Adam', betas=(0.9, 0.99))\n"
        "lr_config = dict(policy='CosineRestart', min_lr=0.1, periods=[9])\n"
        f'{EPOCHS}',
    )
    assert "needs the optimizer's lr" in migration.left


def test_a_projects_runner_counts_what_its_name_says(tmp_path):
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\ntotal_iters = 9\n",
        base="runner = dict(type='DynamicIterBasedRunner', dynamic=True)\n",
    )
    assert child.cfg['train_cfg'] == dict(by_epoch=False, max_iters=9)
