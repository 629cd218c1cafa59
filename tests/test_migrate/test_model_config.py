"""The model's own train_cfg and test_cfg at the top level of a config."""

import pytest
from migrating import FP32, Migration, migrate_in_place
from mmengine.config import Config

from mmnanguard.migrate import flatten
from mmnanguard.optim.apply_guard import load_overlay

REST = """
optimizer = dict(type='SGD', lr=0.01)
lr_config = dict(policy='step', step=[8])
total_epochs = 12
data = dict(samples_per_gpu=2, train=dict(type='D'), test=dict(type='D'))
evaluation = dict(interval=1)
"""
KEYS = """
train_cfg = dict(rcnn=dict(
    # of the assigner
    assigner=dict(type='Max')))
test_cfg = dict(rcnn=dict(score_thr=0.05))
"""
MODEL = "model = dict(type='M')\n"
LOOP = dict(by_epoch=True, max_epochs=12, val_interval=1)
OWN = dict(
    type='M',
    train_cfg=dict(rcnn=dict(assigner=dict(type='Max'))),
    test_cfg=dict(rcnn=dict(score_thr=0.05)),
)


@pytest.mark.parametrize(
    'text',
    [
        MODEL + KEYS + REST,
        REST + KEYS + MODEL,
        KEYS + MODEL + REST,
        # It reads a name that the model stands above.
        MODEL + KEYS.replace("'Max'", 'kind') + REST,
        # The model is set in several places.
        MODEL + "model['type'] = 'M'\n" + KEYS + REST,
        # The model reads the key.
        KEYS
        + MODEL.replace(')', ', train_cfg=train_cfg, test_cfg=None)')
        + REST,
    ],
)
def test_they_go_into_the_model(text, tmp_path):
    if 'kind' in text:
        text = text.replace('train_cfg =', "kind = 'Max'\ntrain_cfg =")
    migration = Migration(tmp_path, text)
    assert migration.cfg['model'] == OWN
    assert migration.cfg['train_cfg'] == LOOP
    assert migration.cfg['test_cfg'] == {}
    assert migration.cfg['optim_wrapper']['type'] == FP32
    assert '# of the assigner' in migration.new
    assert 'no effect' not in migration.left
    assert 'train_cfg -> model.train_cfg' in migration.notes_of('done')


def test_a_child_changes_its_base(tmp_path):
    base = Migration(tmp_path, MODEL + KEYS + REST)
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\n"
        "train_cfg = dict(rcnn=dict(assigner=dict(type='Min')))\n"
        'test_cfg = dict(rcnn=dict(_delete_=True, max=3))\n'
        'total_epochs = 24\n',
        base=base.new,
    )
    assert child.cfg['train_cfg'] == dict(LOOP, max_epochs=24)
    assert child.cfg['model'] == dict(
        type='M',
        train_cfg=dict(rcnn=dict(assigner=dict(type='Min'))),
        test_cfg=dict(rcnn=dict(max=3)),
    )


def test_a_child_whose_base_is_not_migrated_yet(tmp_path):
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\ntotal_epochs = 24\n",
        base=MODEL + KEYS + REST,
    )
    assert child.new.endswith(
        'train_cfg = dict(by_epoch=True, max_epochs=24)\n'
    )


@pytest.mark.parametrize(
    ('empty', 'moved'), [('None', {}), ('dict()', dict(train_cfg={}))]
)
def test_an_empty_one_in_a_config_of_1x(empty, moved, tmp_path):
    migration = Migration(tmp_path, f'{MODEL}train_cfg = {empty}\n{REST}')
    assert migration.cfg['train_cfg'] == LOOP
    assert migration.cfg['model'] == dict(type='M', **moved)


@pytest.mark.parametrize(
    'keys',
    [
        'train_cfg = dict(by_epoch=True, max_epochs=3)\n',
        "train_cfg = dict(type='MyLoop', own=1)\n",
        'train_cfg = None\n',
        'val_cfg = dict()\ntest_cfg = dict()\n',
        'test_cfg = dict(fp16=True)\n',
    ],
)
def test_those_of_the_loops_stay(keys, tmp_path):
    text = f"{MODEL}{keys}optim_wrapper = dict(optimizer=dict(type='SGD'))\n"
    migration = Migration(tmp_path, text)
    assert keys in migration.new
    assert migration.cfg['model'] == dict(type='M')


def test_what_else_reads_one_is_told(tmp_path):
    migration = Migration(tmp_path, f'{MODEL}{KEYS}other = train_cfg\n')
    assert 'train_cfg stays, because line 7 reads it' in migration.left
    assert migration.cfg['model'] == OWN
    assert migration.cfg['other'] == OWN['train_cfg']


def test_a_variable_that_is_read_has_an_effect(tmp_path):
    text = "optimizer = dict(type='SGD', lr=1)\noptim_wrapper = dict("
    text = MODEL + text
    migration = Migration(tmp_path, f'{text}optimizer=optimizer)\n')
    assert not migration.left
    assert migration.cfg['optim_wrapper']['optimizer']['lr'] == 1
    changed = text.replace(
        'optim_wrapper', "optimizer['lr'] = 2\noptim_wrapper"
    )
    migration = Migration(tmp_path, f'{changed}optimizer=optimizer)\n')
    assert not migration.left
    assert migration.cfg['optim_wrapper']['optimizer']['lr'] == 2
    base = f'{text}optimizer=optimizer, clip_grad=None)\n'
    child = Migration(tmp_path, "_base_ = 'base.py'\n", base=base)
    assert 'of 1.x as well' not in child.left
    unread = Migration(tmp_path, f'{text}optimizer=dict(type="SGD"))\n')
    assert 'optimizer has no effect' in unread.left


def test_a_tree_whose_runner_stays(tmp_path):
    """MMEngine leaves _delete_ in a train_cfg that no base has."""
    cfg, _ = migrate_in_place(
        tmp_path,
        "_base_ = 'base.py'\ntotal_iters = 9\n",
        base=f"runner = dict(type='Mine', max_epochs=3)\n{MODEL}"
        'train_cfg = dict(use_ema=True)\n',
    )
    assert cfg['train_cfg'] == dict(by_epoch=False, max_iters=9)
    assert cfg['model'] == dict(type='M', train_cfg=dict(use_ema=True))


def test_a_leaf_that_does_not_train_has_no_unit(tmp_path):
    leaf = "_base_ = 'base.py'\ntrain_cfg = optim_wrapper = None\n"
    base = (
        'train_cfg = dict(by_epoch=False, max_iters=9)\n'
        'log_processor = dict(by_epoch=False)\n'
        "optim_wrapper = dict(optimizer=dict(type='SGD'))\n"
    )
    cfg, notes = migrate_in_place(tmp_path, leaf, base=base)
    assert cfg['log_processor'] == dict(by_epoch=False)
    assert cfg['optim_wrapper'] is None
    assert 'is inherited' not in notes


def test_in_one_file(tmp_path):
    path = tmp_path / 'config.py'
    text = MODEL.replace(')', ', train_cfg=None)')
    path.write_text(text + KEYS + REST)
    path.write_text(flatten(path, load_overlay).new)
    cfg = Config.fromfile(path).to_dict()
    assert cfg['model'] == OWN
    assert cfg['train_cfg'] == LOOP


def test_parts_beside_the_model(tmp_path):
    """An empty one of a part would be a second model beside its sibling."""
    cfg, notes = migrate_in_place(
        tmp_path,
        "_base_ = ['net.py', 'runtime.py']\n" + REST,
        net=MODEL,
        runtime='train_cfg = {}\ntest_cfg = dict(a=1)\n'
        "dist_params = dict(backend='nccl')\n",
    )
    assert cfg['model'] == dict(type='M')
    assert cfg['train_cfg'] == LOOP
    assert 'give it test_cfg=model_test_cfg' in notes
    assert cfg['model_test_cfg'] == dict(a=1)
