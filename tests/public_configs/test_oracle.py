"""The oracle finds each difference, in configs that are written for it."""

import copy

import pytest
from mmengine.config import Config, ConfigDict

from public_configs import guards, score, trees
from public_configs.compare import Notes

NO_NOTES = Notes([], [], [])
OLD = dict(
    model=dict(type='Detector', depth=50),
    optimizer=dict(
        type='SGD', lr=0.02, paramwise_cfg=dict(norm_decay_mult=0.0)
    ),
    optimizer_config=dict(grad_clip=dict(max_norm=35)),
    fp16=dict(loss_scale=512.0),
    lr_config=dict(
        policy='step', warmup='linear', warmup_iters=500, step=[8, 11]
    ),
    runner=dict(type='EpochBasedRunner', max_epochs=12),
    evaluation=dict(interval=2, start=4, save_best='mAP'),
    checkpoint_config=dict(interval=3, max_keep_ckpts=2),
    log_config=dict(interval=50, hooks=[dict(type='TensorboardLoggerHook')]),
    custom_hooks=[dict(type='MyHook'), dict(type='CheckInvalidLossHook')],
    data=dict(
        samples_per_gpu=4,
        workers_per_gpu=2,
        train=dict(type='Boxes', pipeline=[dict(type='Load')]),
        val=dict(type='Boxes', samples_per_gpu=8),
    ),
    dist_params=dict(backend='nccl'),
    cudnn_benchmark=True,
    load_from='weights.pth',
    seed=1,
    num_classes=3,
)
NEW = dict(
    model=dict(type='Detector', depth=50),
    optim_wrapper=dict(
        type='mmnanguard.NanGuardAmpOptimWrapper',
        dtype='float16',
        loss_scale=512.0,
        optimizer=dict(type='SGD', lr=0.02),
        paramwise_cfg=dict(norm_decay_mult=0.0),
        clip_grad=dict(max_norm=35),
    ),
    param_scheduler=[
        dict(
            type='LinearLR', start_factor=0.1, begin=0, end=501, by_epoch=False
        ),
        dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True),
    ],
    train_cfg=dict(by_epoch=True, max_epochs=12, val_interval=2, val_begin=4),
    default_hooks=dict(
        nan_guard=dict(type='mmnanguard.NanGuardHook'),
        checkpoint=dict(
            type='CheckpointHook',
            interval=3,
            max_keep_ckpts=2,
            save_best='mAP',
        ),
        logger=dict(type='LoggerHook', interval=50),
    ),
    visualizer=dict(vis_backends=[dict(type='TensorboardVisBackend')]),
    custom_hooks=[dict(type='MyHook')],
    train_dataloader=dict(
        batch_size=4,
        num_workers=2,
        dataset=dict(type='Boxes', pipeline=[dict(type='Load')]),
    ),
    val_dataloader=dict(
        batch_size=8, num_workers=2, dataset=dict(type='Boxes')
    ),
    env_cfg=dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl')),
    load_from='weights.pth',
    randomness=dict(seed=1),
    num_classes=3,
)
HOOK = 'hook CheckInvalidLossHook'
DONE = Notes([f'{HOOK} -> the guard'], [], [])

# The path of a value of NEW, a wrong value, and the fact that differs.
FAULTS = [
    ('model.depth', 101, 'model'),
    ('num_classes', 4, 'key num_classes'),
    ('optim_wrapper.optimizer.lr', 0.01, 'optimizer'),
    ('optim_wrapper.optimizer.type', 'Adam', 'optimizer'),
    ('optim_wrapper.paramwise_cfg', None, 'paramwise'),
    ('optim_wrapper.constructor', 'Mine', 'constructor'),
    ('optim_wrapper.clip_grad.max_norm', 1, 'clip'),
    ('optim_wrapper.accumulative_counts', 2, 'accumulation'),
    ('optim_wrapper.loss_scale', 'dynamic', 'loss scale'),
    ('optim_wrapper.dtype', 'bfloat16', 'loss scale'),
    ('optim_wrapper.type', 'AmpOptimWrapper', 'guard'),
    ('default_hooks.nan_guard', None, 'guard'),
    ('param_scheduler.0.end', 500, 'rates'),
    ('param_scheduler.1.milestones', [8, 10], 'rates'),
    ('param_scheduler.1.by_epoch', False, 'rates'),
    ('param_scheduler', [], 'rates'),
    ('train_cfg.max_epochs', 24, 'length'),
    ('train_cfg.rpn', {}, 'length'),
    ('train_cfg', dict(by_epoch=False, max_iters=12), 'length'),
    ('train_cfg.val_interval', 1, 'validation'),
    ('train_cfg.val_begin', 1, 'validation begins'),
    ('default_hooks.checkpoint.interval', 1, 'checkpoint'),
    ('default_hooks.checkpoint.by_epoch', False, 'checkpoint'),
    ('default_hooks.checkpoint.max_keep_ckpts', 1, 'checkpoint'),
    ('default_hooks.checkpoint.save_best', 'auto', 'save_best'),
    ('default_hooks.checkpoint', None, 'checkpoint'),
    ('default_hooks.logger.interval', 10, 'log interval'),
    ('log_processor', dict(by_epoch=False), 'log by_epoch'),
    ('visualizer.vis_backends', [], 'log services'),
    ('custom_hooks', [], 'hook MyHook'),
    ('train_dataloader.batch_size', 8, 'train batch'),
    ('train_dataloader.num_workers', 0, 'train workers'),
    ('train_dataloader.dataset.pipeline', [], 'train dataset'),
    ('train_dataloader', None, 'train dataset'),
    ('val_dataloader.batch_size', 1, 'val batch'),
    ('val_dataloader.num_workers', 0, 'val workers'),
    ('val_dataloader.dataset.extra', 1, 'val dataset'),
    ('env_cfg.cudnn_benchmark', False, 'cudnn_benchmark'),
    ('env_cfg.dist_cfg.backend', 'gloo', 'dist_params'),
    ('load_from', None, 'load_from'),
    ('randomness.seed', 2, 'seed'),
    ('train_dataloader._delete_', True, '_delete_'),
]


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path.split('.')
    entry = config
    for parent in parents:
        entry = entry[int(parent) if parent.isdigit() else parent]
    entry[last] = value
    return config


def facts_that_differ(new, old=OLD, notes=DONE):
    return {d.fact: d.is_told for d in trees.judge(old, new, notes)}


def test_a_right_migration_agrees():
    assert facts_that_differ(NEW) == {}


@pytest.mark.parametrize(('path', 'value', 'fact'), FAULTS)
def test_a_wrong_migration_is_found(path, value, fact):
    differing = facts_that_differ(changed(NEW, path, value))
    assert differing[fact] is False


def test_a_note_tells_of_a_difference():
    wrong = changed(NEW, 'train_dataloader.batch_size', 8)
    notes = Notes(DONE.done, [], ['- line 3: data.train: see there'])
    assert facts_that_differ(wrong, notes=notes) == {'train batch': True}


def test_a_small_change_in_meaning_tells_of_no_other_schedule():
    notes = Notes(DONE.done, ['- lr_config ends an iteration earlier'], [])
    wrong = changed(NEW, 'param_scheduler.1.milestones', [8, 10])
    assert facts_that_differ(wrong, notes=notes) == {'rates': False}
    slightly = changed(NEW, 'param_scheduler.0.end', 500)
    assert facts_that_differ(slightly, notes=notes) == {'rates': True}


def test_a_hook_that_kills_a_guarded_run_has_to_go():
    new = changed(NEW, 'custom_hooks', OLD['custom_hooks'])
    assert facts_that_differ(new, notes=NO_NOTES) == {HOOK: False}


def test_a_hook_that_goes_has_to_be_named():
    assert facts_that_differ(NEW, notes=NO_NOTES) == {HOOK: False}


@pytest.mark.parametrize(
    'unit', [dict(by_epoch=False), dict(type='IterBasedTrainLoop')]
)
def test_units_follow_a_loop_of_iterations(unit):
    old = changed(OLD, 'runner', dict(type='IterBasedRunner', max_iters=9000))
    del old['evaluation']['start'], old['evaluation']['save_best']
    old['lr_config']['step'] = [6000, 8000]
    new = changed(NEW, 'train_cfg', dict(**unit, max_iters=9000))
    new['train_cfg']['val_interval'] = 2
    new['param_scheduler'][1].update(milestones=[6000, 8000])
    assert {'rates', 'checkpoint', 'log by_epoch'} == {
        *facts_that_differ(new, old)
    }
    new['param_scheduler'][1].update(by_epoch=False)
    new['default_hooks']['checkpoint'].update(by_epoch=False)
    new['log_processor'] = dict(by_epoch=False)
    assert facts_that_differ(new, old) == {}


@pytest.mark.parametrize(
    ('path', 'value', 'fact'),
    [
        ('optimizer_config.type', 'MyOptimizerHook', 'optimizer hook'),
        ('lr_config.policy', 'Mine', 'rates'),
        ('runner.type', 'MyRunner', 'length'),
        ('data.sampler', {}, 'data.sampler'),
    ],
)
def test_a_class_of_a_project_has_to_be_told_of(path, value, fact):
    assert facts_that_differ(NEW, changed(OLD, path, value))[fact] is False


@pytest.mark.parametrize('name', ['imgs_per_gpu', 'videos_per_gpu'])
def test_names_of_the_batch_size(name):
    old = copy.deepcopy(OLD)
    old['data'][name] = old['data'].pop('samples_per_gpu')
    assert facts_that_differ(NEW, old) == {}
    wrong = changed(NEW, 'train_dataloader.batch_size', None)
    assert facts_that_differ(wrong, old) == {'train batch': False}


def test_a_models_own_keys_at_the_top_level():
    model_cfg = dict(rpn=dict(allowed_border=0))
    old = changed(OLD, 'train_cfg', model_cfg)
    assert facts_that_differ(NEW, old) == {'model': False}
    new = changed(NEW, 'model.train_cfg', model_cfg)
    assert facts_that_differ(new, old) == {}


def test_a_guard_that_loses_hooks_is_found(monkeypatch, tmp_path):
    leaf = tmp_path / 'leaf.py'
    Config(
        dict(
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(checkpoint=dict(interval=5)),
        )
    ).dump(leaf)
    assert guards.problems_of(leaf, 'full') == []

    def lose(cfg, guard):
        return Config(dict(cfg, default_hooks=ConfigDict()))

    monkeypatch.setattr(guards, 'guarded', lose)
    assert guards.problems_of(leaf, 'full') == [
        'default_hooks.checkpoint is lost',
        'there is no NanGuardHook',
    ]


def test_a_guard_beside_the_hook_that_kills_it_is_found():
    hook = dict(type='CheckInvalidLossHook')
    old = dict(custom_hooks=[hook])
    problem = 'CheckInvalidLossHook is neither removed nor named'
    assert guards.compare_guarded(old, old, '') == [problem]
    assert guards.compare_guarded(old, old, 'CheckInvalidLossHook') == []
    assert guards.compare_guarded(old, {}, '') == []


def test_a_migration_of_2x_changes_what_it_says():
    old = dict(default_hooks={}, train_cfg=dict(max_iters=1))
    new = dict(default_hooks={}, train_cfg=dict(max_iters=2))
    assert facts_that_differ(new, old) == {'train_cfg is changed': False}
    notes = Notes(['- runner -> train_cfg'], [], [])
    assert facts_that_differ(new, old, notes) == {'train_cfg is changed': True}


@pytest.mark.parametrize(
    ('status', 'kind'), [(0, 'migrated'), (1, 'migrated'), (2, 'refused')]
)
def test_kinds_of_migrations(status, kind, monkeypatch, tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text('lr = 1')
    out = tmp_path / 'out'

    def tool(argv):
        out.mkdir()
        (out / 'leaf.py').write_text('lr = 2')
        print('done:\n- one\n\ncannot do, left to you:\n- lr: yours')
        return status

    monkeypatch.setattr(trees, 'migrate_config', tool)
    outcome = trees.migrate_leaf(leaf, out)
    assert outcome.kind == kind
    if kind == 'migrated':
        assert outcome.notes == Notes(['- one'], [], ['- lr: yours'])
        assert [d.fact for d in outcome.differences] == ['key lr']
        assert outcome.silent == []


def test_a_crash_and_a_result_that_does_not_load(monkeypatch, tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text('lr = 1')

    def crash(argv):
        raise KeyError('interval')

    monkeypatch.setattr(trees, 'migrate_config', crash)
    crashed = trees.migrate_leaf(leaf, tmp_path / 'out')
    assert crashed.kind == 'crashed'
    monkeypatch.setattr(trees, 'migrate_config', lambda argv: 0)
    missing = trees.migrate_leaf(leaf, tmp_path / 'out')
    assert missing.kind == 'migrated'
    assert not missing.loads
    numbers = trees.count([crashed, missing], 3)
    assert (numbers['leaves'], numbers['unreadable']) == (2, 3)
    assert (numbers['crashed'], numbers['load']) == (1, 0)


TREE = {
    '_base_/data.py': """\
data = dict(
    samples_per_gpu=2,
    train=dict(type='Boxes', path='{{ fileDirname }}', pipeline=[]))
""",
    '_base_/schedule.py': """\
optimizer = dict(type='SGD', lr=0.02)
lr_config = dict(policy='CosineAnnealing', min_lr=0.0)
runner = dict(type='EpochBasedRunner', max_epochs=12)
""",
    '_base_/runtime.py': """\
checkpoint_config = dict(interval=1)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
evaluation = dict(interval=1)
""",
    'net/leaf.py': """\
_base_ = ['../_base_/data.py', '../_base_/schedule.py',
          '../_base_/runtime.py']
model = dict(type='Net')
runner = dict(max_epochs=24)
data = dict(samples_per_gpu=4)
""",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        path = tmp_path / 'project' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / 'project'


@pytest.mark.parametrize('options', [[], ['--flatten']])
def test_a_tree(options, tree, tmp_path):
    leaf, out = tree / 'net' / 'leaf.py', tmp_path / 'out'
    outcome = trees.migrate_leaf(leaf, out, *options)
    assert outcome.loads
    assert outcome.differences == []
    # The base's schedule in place of the leaf's.
    new = trees.result_of(leaf, out)
    with new.open('a') as file:
        file.write('param_scheduler[0].update(T_max=12, end=12)\n')
    differences = trees.judge(
        trees.read(leaf), trees.read_result(leaf, out), outcome.notes
    )
    assert [d.fact for d in differences if not d.is_told] == ['rates']


def test_a_table(tree, capsys):
    assert score.main([str(tree.parent), '--show']) == 0
    header, line, total = capsys.readouterr().out.splitlines()
    numbers = dict(zip(header.split()[1:], line.split()[2:]))
    assert numbers['leaves'] == numbers['load'] == numbers['agree'] == '1'
    assert line.split()[2:] == total.split()[2:]


def test_leaves_are_no_parts(tmp_path):
    for name in ('_base_/schedule.py', 'net/leaf.py', 'net/broken.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('a = 1')
    (tmp_path / 'net' / 'broken.py').write_text("_base_ = 'missing.py'")
    (tmp_path / 'net' / 'new.py').write_text('param_scheduler = []')
    old, new, num_unreadable = score.sort_leaves(tmp_path, None)
    assert [path.name for path in old] == ['leaf.py']
    assert [path.name for path in new] == ['new.py']
    assert num_unreadable == 1
