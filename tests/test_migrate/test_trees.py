"""Trees of configs of 1.x: what a leaf is after the migration is what it was
before, in whatever order its files are migrated.
"""

import pytest
from mmengine.config import Config

from mmnanguard.migrate import flatten, migrate, migrate_tree
from mmnanguard.optim.apply_guard import load_overlay
from tools.migrate_config import main

PARTS = dict(
    dataset="""\
train_pipeline = [dict(type='Load'), dict(type='Flip')]
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='D', ann='train.json', pipeline=train_pipeline),
    val=dict(type='D', ann='val.json', sampler=dict(n=2, stride=1)),
    test=dict(type='D', ann='val.json'))
evaluation = dict(interval=1, metric='bbox')
""",
    schedule="""\
optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='poly', power=0.9, min_lr=1e-4, by_epoch=False,
    warmup='linear', warmup_iters=500)
runner = dict(type='IterBasedRunner', max_iters=1000)
checkpoint_config = dict(interval=100)
""",
    runtime="""\
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
cudnn_benchmark = True
""",
    env="dist_params = dict(backend='nccl')\n",
)
BASES = "_base_ = ['dataset.py', 'schedule.py', 'runtime.py', 'env.py']\n"
MODEL = "model = dict(type='M')\n"
LEAVES = {
    'plain': '',
    'longer': "runner = dict(type='IterBasedRunner', max_iters=4000)\n",
    'in epochs': (
        "runner = dict(_delete_=True, type='EpochBasedRunner', "
        "max_epochs=9)\nlr_config = dict(_delete_=True, policy='step', "
        'step=[3])\n'
    ),
    'in part': (
        "train_pipeline = [dict(type='Load'), dict(type='Resize', s=2)]\n"
        'data = dict(\n    workers_per_gpu=5,\n'
        '    train=dict(pipeline=train_pipeline),\n'
        '    val=dict(sampler=dict(_delete_=True, n=30)))\n'
    ),
    'deleted': "data = dict(_delete_=True, train=dict(type='E'))\n",
    'half': (
        'fp16 = dict(loss_scale=512.)\noptimizer = dict(lr=1)\n'
        "evaluation = dict(interval=7, save_best='auto')\n"
    ),
    'appended': (
        "lr_config = dict(_delete_=True, policy='step', step=[100])\n"
        "lr_config['step'].append(200)\n"
    ),
    'in place': "lr_config = dict(power=1.0)\nlr_config['min_lr'] = 1e-5\n",
}
# What tells one run from another: the keys of 2.x.
KEYS = (
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'default_hooks',
    'log_processor',
    'env_cfg',
)
# Entries that are as good as none.
NONE = dict(clip_grad=None, by_epoch=True)


def load(path):
    return Config.fromfile(path, import_custom_modules=False).to_dict()


def write(folder, leaf):
    for name, text in dict(PARTS, leaf=f'{BASES}{MODEL}{leaf}').items():
        (folder / f'{name}.py').write_text(text)
    return folder / 'leaf.py'


def run_of(cfg):
    """Return what decides on a run, without what is as good as none."""
    if isinstance(cfg, dict):
        return {
            key: run_of(value)
            for key, value in cfg.items()
            if value is not None and NONE.get(key, cfg) != value
        }
    return cfg


def runs_of(cfg):
    run = run_of({key: cfg.get(key) for key in KEYS})
    # A part that knows no loop has the DefaultSampler, with which MMEngine's
    # loop of iterations begins anew after an epoch, as mmcv's did.
    run['train_dataloader']['sampler'].pop('type')
    return run


@pytest.fixture(params=LEAVES)
def case(request, tmp_path):
    """Return a leaf, and the run that it describes: that of one flat file,
    for which the other tests speak.
    """
    leaf = write(tmp_path, LEAVES[request.param])
    flat = tmp_path / 'flat' / 'flat.py'
    flat.parent.mkdir()
    flat.write_text(flatten(leaf, load_overlay).new)
    return leaf, runs_of(load(flat))


def test_a_tree(case):
    leaf, run = case
    out = leaf.parent / 'out'
    main([str(leaf), '--out', str(out)])
    assert runs_of(load(out / 'leaf.py')) == run
    left = ''.join(path.read_text() for path in out.iterdir())
    assert 'evaluation' not in left
    assert 'checkpoint_config' not in left


def test_in_place_and_again(case):
    leaf, run = case
    main([str(leaf), '--write'])
    assert runs_of(load(leaf)) == run
    first = {path: path.read_text() for path in leaf.parent.glob('*.py')}
    main([str(leaf), '--write'])
    assert first == {path: path.read_text() for path in first}


@pytest.mark.parametrize(
    'order',
    [
        ('leaf', 'dataset', 'schedule'),
        ('dataset', 'schedule', 'leaf'),
        ('schedule', 'leaf', 'dataset'),
    ],
)
def test_one_by_one_in_any_order(case, order):
    leaf, run = case
    for name in ('runtime', *order, 'env'):
        path = leaf.parent / f'{name}.py'
        path.write_text(migrate(path, load_overlay).new)
    assert runs_of(load(leaf)) == run


GUARDABLE = "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))\n"
LAZY = f"""\
from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *

{GUARDABLE}"""
RUNTIME = "default_hooks = dict(checkpoint=dict(type='CheckpointHook'))\n"


@pytest.mark.parametrize(
    ('leaf', 'base'),
    [
        (LAZY, ('runtime.py', RUNTIME)),
        (
            "_base_ = '../_base_/runtime.json'\n"
            + LAZY[LAZY.index('optim') :],
            ('runtime.json', '{"default_hooks": {"checkpoint": {}}}\n'),
        ),
    ],
)
def test_files_that_are_only_read(leaf, base, tmp_path):
    old, out = tmp_path / 'old', tmp_path / 'out'
    name, text = base
    for path, content in (('net/leaf.py', leaf), (f'_base_/{name}', text)):
        (old / path).parent.mkdir(parents=True)
        (old / path).write_text(content)
    main([str(old / 'net' / 'leaf.py'), '--out', str(out)])
    hooks = load(out / 'net' / 'leaf.py')['default_hooks']
    assert {'checkpoint', 'nan_guard'} <= {*hooks}
    assert (out / '_base_' / name).read_text() == text


def test_empty_keys_of_a_model_beside_the_data(tmp_path):
    parts = dict(
        net="model = dict(type='M')\ntrain_cfg = None\ntest_cfg = None\n",
        dataset=PARTS['dataset'],
        schedule=PARTS['schedule'],
        leaf="_base_ = ['net.py', 'dataset.py', 'schedule.py']\n",
    )
    for name, text in parts.items():
        (tmp_path / f'{name}.py').write_text(text)
    out = tmp_path / 'out'
    main([str(tmp_path / 'leaf.py'), '--out', str(out)])
    new = load(out / 'leaf.py')
    assert new['test_cfg'] == {}
    assert new['train_cfg']['max_iters'] == 1000


@pytest.mark.parametrize('value', ['{}', 'dict()', 'None'])
def test_an_empty_train_cfg_beside_the_model(value, tmp_path):
    """The model's, in a part that is no model's: MMEngine's is another."""
    parts = dict(
        net="model = dict(type='M')\n",
        schedule=PARTS['schedule'],
        runtime=f'train_cfg = {value}\n{PARTS["runtime"]}workflow = []\n',
        leaf="_base_ = ['net.py', 'schedule.py', 'runtime.py']\n",
    )
    for name, text in parts.items():
        (tmp_path / f'{name}.py').write_text(text)
    out = tmp_path / 'out'
    main([str(tmp_path / 'leaf.py'), '--out', str(out)])
    assert load(out / 'leaf.py')['train_cfg'] == dict(
        by_epoch=False, max_iters=1000
    )


def test_bases_that_cannot_stand_beside_one_another_are_refused(
    tmp_path, capsys
):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('param_scheduler = []\n')
    (tmp_path / 'leaf.py').write_text("_base_ = ['a.py', 'b.py']\n")
    leaf = str(tmp_path / 'leaf.py')
    assert main([leaf, '--out', str(tmp_path / 'out')]) == 2
    assert 'Duplicate key' in capsys.readouterr().err


def test_schedulers_that_no_lr_config_became_stay(tmp_path, capsys):
    schedulers = [dict(type='PolyLR', eta_min=1e-4, end=900, by_epoch=False)]
    base = f"""\
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))
param_scheduler = {schedulers}
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000)
"""
    leaf = "_base_ = 'base.py'\nrunner = dict(max_iters=4000)\n"
    (tmp_path / 'base.py').write_text(base)
    (tmp_path / 'leaf.py').write_text(leaf)
    main([str(tmp_path / 'leaf.py'), '--out', str(tmp_path / 'out')])
    new = load(tmp_path / 'out' / 'leaf.py')
    assert new['train_cfg']['max_iters'] == 4000
    assert new['param_scheduler'] == schedulers
    assert 'param_scheduler is inherited' in capsys.readouterr().out


@pytest.fixture
def two(tmp_path):
    """Return two leaves of the same parts, and the runs that they describe."""
    first = write(tmp_path, LEAVES['longer'])
    second = tmp_path / 'second.py'
    second.write_text(f'{BASES}{MODEL}{LEAVES["in epochs"]}')
    runs = []
    for leaf in (first, second):
        flat = tmp_path / 'flat' / leaf.name
        main([str(leaf), '--flatten', '--out', str(flat)])
        runs.append(runs_of(load(flat)))
    return (first, second), runs


def test_one_leaf_after_another(two):
    leaves, runs = two
    dataset = leaves[0].parent / 'dataset.py'
    for leaf in leaves:
        main([str(leaf), '--write'])
        # The other leaf may need it.
        assert 'evaluation' in dataset.read_text()
    assert [runs_of(load(leaf)) for leaf in leaves] == runs


def test_leaves_at_once(two):
    leaves, runs = two
    out = leaves[0].parent / 'out'
    main([*map(str, leaves), '--out', str(out)])
    assert [runs_of(load(out / leaf.name)) for leaf in leaves] == runs
    assert 'evaluation' not in (out / 'dataset.py').read_text()


def test_a_key_that_a_config_above_reads_stays(tmp_path):
    leaf = write(
        tmp_path,
        'lr = _base_.optimizer.lr\npipeline = {{_base_.train_pipeline}}\n'
        'data = dict(train=dict(pipeline=pipeline))\n',
    )
    files = migrate_tree([leaf], load_overlay).files
    for path, migrated in files.items():
        path.write_text(migrated.new)
    cfg = load(leaf)
    assert cfg['lr'] == 0.01
    assert cfg['train_dataloader']['dataset']['pipeline'][1]['type'] == 'Flip'
    assert 'dataset=dict(pipeline=pipeline)' in files[leaf].new
    (note,) = (
        text
        for _, text in files[tmp_path / 'schedule.py'].notes.left
        if 'optimizer' in text
    )
    assert note == 'optimizer stays, because leaf.py reads it'


def test_a_leaf_gets_nothing_that_its_base_has(tmp_path):
    leaf = write(tmp_path, LEAVES['in part'])
    new = migrate_tree([leaf], load_overlay).files[leaf].new
    loader = 'num_workers=5, dataset=dict(pipeline=train_pipeline)'
    assert f'\ntrain_dataloader = dict({loader})\n' in new
    assert 'dataset=dict(sampler=dict(_delete_=True, n=30))' in new
    assert 'optim_wrapper' not in new
    assert 'val_cfg' not in new


def test_bases_that_set_the_same_key_already(tmp_path):
    """A file of 2.x keeps its key, and another leaves its own to the leaf."""
    leaf = write(tmp_path, '')
    (tmp_path / 'dataset.py').write_text('train_cfg = dict(val_interval=3)\n')
    files = migrate_tree([leaf], load_overlay).files
    for path, migrated in files.items():
        path.write_text(migrated.new)
    loop = dict(by_epoch=False, max_iters=1000, val_interval=3)
    assert load(leaf)['train_cfg'] == loop
    assert 'train_cfg' not in files[tmp_path / 'schedule.py'].new
    (tmp_path / 'env.py').write_text('train_cfg = dict(val_begin=2)\n')
    refused = migrate_tree([leaf], load_overlay).refused
    assert 'Keep each of them in one of these files' in str(refused[leaf])
