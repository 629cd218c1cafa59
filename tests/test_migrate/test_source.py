"""A migration leaves the parts that it need not change as they were."""

from collections import Counter

import pytest
from migrating import FP16, FP32, Migration

from mmnanguard.core import GuardConfigError
from mmnanguard.migrate import migrate
from mmnanguard.optim.apply_guard import load_overlay

OLD = '''\
"""A config."""
# what it is for
_dim_ = 256  # of features
model = dict(type='Net',
             neck=dict(channels=[_dim_,
                                 _dim_]))  # no neck

data = dict(
    samples_per_gpu=2,  # eight GPUs
    train=dict(
        type='Shapes',
        # the small one
        split='train'),  # of two
)

# optimizer
optimizer = dict(type='AdamW',
                 lr=2e-4,  # for 8 x 1
                 paramwise_cfg=dict(
                     custom_keys={
                         'backbone': dict(lr_mult=0.1),  # slowly
                     }),
                 weight_decay=0.01)  # as in the paper
optimizer_config = dict(grad_clip=dict(max_norm=35,  # clip
                                       norm_type=2))
# yapf:disable
lr_config = dict(
    policy='CosineAnnealing',
    warmup='linear',  # gently
    warmup_iters=500,
    warmup_ratio=1.0 / 3,
    min_lr_ratio=1e-3)
# yapf:enable
total_epochs = 24
fp16 = dict(loss_scale=512.)  # as on V100

log_level = 'INFO'  # or DEBUG
workflow = [('train', 1)]
# the end
'''
NEW = """\
# optimizer
optim_wrapper = dict(
    type='mmnanguard.NanGuardAmpOptimWrapper',
    dtype='float16',
    loss_scale=512.,
    clip_grad=dict(max_norm=35,  # clip
                   norm_type=2),
    optimizer=dict(type='AdamW',
                   lr=2e-4,  # for 8 x 1
                   weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),  # slowly
        }),
)  # as in the paper
"""


def comments(text):
    return Counter(
        line.split('#')[1].strip() for line in text.split('\n') if '#' in line
    )


def test_comments_order_and_formatting_stay(tmp_path):
    new = Migration(tmp_path, OLD).new
    head, _, _ = OLD.partition('data = ')
    assert new.startswith(head)
    assert comments(new) == comments(OLD)
    assert NEW.replace(')  # as in the paper', '') in new.replace(
        '# as on V100\n', ''
    ).replace(')  # as in the paper', '')
    assert "        # the small one\n        split='train')" in new
    assert "log_level = 'INFO'  # or DEBUG\n" in new
    assert new.rstrip().endswith('# the end')
    places = [
        new.index(key) for key in ('# yapf:dis', 'param_sch', '# yapf:e')
    ]
    assert places == sorted(places)


def test_an_own_2x_config_changes_in_few_lines(tmp_path):
    old = """\
optim_wrapper = dict(
    type='AmpOptimWrapper',  # half
    loss_scale='dynamic',

    # clipping
    clip_grad={'max_norm': 1.0},
    optimizer=dict(type='SGD', lr=1),  # constant
)
default_hooks = {'timer': dict(type='IterTimerHook')}
"""
    migration = Migration(tmp_path, old)
    gone = [line for line in old.splitlines() if line not in migration.new]
    assert gone == [
        "    type='AmpOptimWrapper',  # half",
        "default_hooks = {'timer': dict(type='IterTimerHook')}",
    ]
    assert f"    type='{FP16}',  # half\n" in migration.new
    assert "{'timer': dict(type='IterTimerHook'), 'nan" in migration.new
    assert migration.cfg['optim_wrapper']['dtype'] == 'float16'
    assert not migration.left


def test_already_migrated(tmp_path):
    old = (
        "optim_wrapper = dict(type='mmnanguard.NanGuardOptimWrapper', "
        "optimizer=dict(type='SGD', lr=1))\n"
    )
    migration = Migration(tmp_path, old)
    assert migration.new == old
    assert not any(migration.notes.sections().values())


BASE = """\
optimizer = dict(type='SGD', lr=0.1, momentum=0.9)
lr_config = dict(policy='step', step=[8], warmup='linear', warmup_iters=500)
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""
RUNTIME = 'log_config = dict(interval=5, hooks=[])\nlog_level = "INFO"\n'
CHILD = """\
_base_ = ['schedule.py', 'runtime.py']
optimizer = dict(lr=0.02)
lr_config = dict(warmup_iters=1000)
optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=1))
"""


def test_a_child_of_1x_bases(tmp_path):
    child = Migration(tmp_path, CHILD, schedule=BASE, runtime=RUNTIME)
    assert 'schedule.py is of 1.x as well (optimizer, lr_config' in child.left
    assert 'runtime.py is of 1.x as well (log_config)' in child.left
    assert (tmp_path / 'schedule.py').read_text() == BASE
    # A list replaces its parent's, so it is whole; a dict is merged.
    assert [
        scheduler['type'] for scheduler in child.cfg['param_scheduler']
    ] == ['LinearLR', 'MultiStepLR']
    assert child.cfg['param_scheduler'][0]['end'] == 1001
    assert child.cfg['optim_wrapper']['optimizer'] == dict(lr=0.02)


def test_a_child_and_then_its_bases(tmp_path):
    Migration(tmp_path, CHILD, schedule=BASE, runtime=RUNTIME)
    for name in ('schedule', 'runtime'):
        path = tmp_path / f'{name}.py'
        path.write_text(migrate(path, load_overlay).new)
    child = Migration(tmp_path, (tmp_path / 'config.py').read_text())
    assert child.cfg['optim_wrapper'] == dict(
        type='mmnanguard.NanGuardOptimWrapper',
        clip_grad=dict(max_norm=1),
        optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
    )
    assert child.cfg['train_cfg'] == dict(by_epoch=True, max_epochs=12)
    hooks = child.cfg['default_hooks']
    assert {'nan_guard', 'logger'} <= {*hooks}


def test_a_child_of_2x_bases(tmp_path):
    base = """\
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
"""
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\nfp16 = dict(loss_scale=512.)\n"
        'optimizer = dict(_delete_=True, type="AdamW", lr=2)\n'
        'runner = dict(max_epochs=36)\n',
        base=base,
    )
    assert child.cfg['optim_wrapper'] == dict(
        type=FP16,
        dtype='float16',
        loss_scale=512.0,
        optimizer=dict(type='AdamW', lr=2),
    )
    assert child.cfg['train_cfg'] == dict(
        type='EpochBasedTrainLoop', max_epochs=36, val_interval=1
    )
    assert not child.left


def test_what_a_2x_base_does_not_read(tmp_path):
    base = 'optim_wrapper = dict(optimizer=dict(type="SGD", lr=1))\n'
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\nmodel = dict()\noptimizer = dict(lr=2)\n",
        base=f'{base}fp16 = dict()\n',
    )
    assert child.cfg['optim_wrapper']['type'] == FP32
    assert 'base.py is of 1.x as well (fp16)' in child.left


def test_a_child_that_only_inherits(tmp_path):
    base = "optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', "
    base += "optimizer=dict(type='SGD', lr=1))\n"
    text = "_base_ = 'base.py'\nmodel = dict()\n"
    child = Migration(tmp_path, text, base=base)
    assert child.new == (
        f'{text}optim_wrapper = dict(\n'
        f"    type='{FP16}',\n    dtype='bfloat16',\n)\n"
        'default_hooks = dict(\n'
        "    nan_guard=dict(type='mmnanguard.NanGuardHook'),\n"
        "    event_log=dict(type='mmnanguard.EventLogHook'),\n"
        "    event_text=dict(type='mmnanguard.EventTextHook'),\n"
        ')\n'
    )


def test_a_child_that_counts_the_other_unit(tmp_path):
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\n"
        "runner = dict(type='IterBasedRunner', max_iters=9)\n",
        base='train_cfg = dict(by_epoch=True, max_epochs=1)\n',
    )
    assert child.cfg['train_cfg'] == dict(by_epoch=False, max_iters=9)


@pytest.mark.parametrize('kind', ['NaNSafeOptimWrapper', 'MyOptimWrapper'])
def test_what_a_base_must_do_itself(kind, tmp_path):
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\nmodel = dict()\n",
        base=f"optim_wrapper = dict(type='{kind}', optimizer=dict())\n",
    )
    assert f'optim_wrapper (type {kind}) is inherited' in child.left


@pytest.mark.parametrize(
    'change', ["optim_wrapper['clip_grad'] = None", 'optim_wrapper.update({})']
)
def test_a_wrapper_that_is_changed_in_place(change, tmp_path):
    text = f"optim_wrapper = dict(optimizer=dict(type='SGD'))\n{change}\n"
    text += "default_hooks = dict(logger=None)\ndefault_hooks['a'] = None\n"
    child = Migration(tmp_path, f'model = dict()\n{text}')
    assert child.new.startswith(f'model = dict()\n{text}')
    assert child.cfg['optim_wrapper']['type'] == FP32
    assert child.cfg['optim_wrapper']['optimizer'] == dict(type='SGD')
    assert {'logger', 'a', 'nan_guard'} <= {*child.cfg['default_hooks']}


def test_what_is_changed_and_not_known_stays(tmp_path):
    text = "optim_wrapper = dict(type='Mine', optimizer=dict())\n"
    text += 'optim_wrapper.update({})\n'
    child = Migration(tmp_path, text)
    assert child.new == text
    assert 'line 2: optim_wrapper (type Mine) is changed here' in child.left


RUNTIME_2X = """
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', interval=3, save_best='auto'))
"""
WRAPPER_2X = """
from mmengine.optim import AmpOptimWrapper
from torch.optim import SGD
optim_wrapper = dict(
    type=AmpOptimWrapper, loss_scale=4.0, optimizer=dict(type=SGD, lr=0.1))
"""
READ_BASE = """
from mmengine.config import read_base
with read_base():
    from .runtime import *
model = dict()
"""


@pytest.mark.parametrize('change', ['', 'optim_wrapper.update(clip_grad={})'])
@pytest.mark.parametrize('is_inherited', [True, False])
def test_what_read_base_imports_is_merged(change, is_inherited, tmp_path):
    base, text = RUNTIME_2X + WRAPPER_2X, READ_BASE
    if not is_inherited:
        base, text = RUNTIME_2X, READ_BASE + WRAPPER_2X
    child = Migration(tmp_path, f'{text}{change}\n', runtime=base)
    hooks = child.cfg['default_hooks']
    assert {'nan_guard', 'event_log'} <= {*hooks}
    assert hooks['checkpoint']['save_best'] == 'auto'
    assert hooks['logger']['interval'] == 20
    wrapper = child.cfg['optim_wrapper']
    assert wrapper['type'] == FP16
    assert wrapper['loss_scale'] == 4.0
    assert wrapper['optimizer']['lr'] == 0.1
    assert not child.left


def test_a_guard_that_refuses_what_is_inherited_is_told(tmp_path):
    base = RUNTIME_2X + WRAPPER_2X
    child = Migration(tmp_path, READ_BASE, 'fp32', runtime=base)
    assert 'refuses loss_scale' in child.left


def test_where_to_resume_wins(tmp_path):
    migration = Migration(
        tmp_path, "load_from = 'a.pth'\nresume_from = 'b.pth'\n"
    )
    assert migration.cfg == dict(load_from='b.pth', resume=False)


def test_a_part_keeps_what_another_part_would_set(tmp_path):
    """MMEngine refuses bases beside one another that set the same key."""
    text = "_base_ = ['schedule.py', 'runtime.py']\nseed = 1\n"
    parts = dict(
        schedule='checkpoint_config = dict(interval=1)\n', runtime=RUNTIME
    )
    child = Migration(tmp_path, text, **parts)
    assert 'schedule.py' not in child.left
    assert child.cfg['default_hooks']['checkpoint']['interval'] == 1
    part = Migration(tmp_path, parts['schedule'])
    assert part.new == parts['schedule']
    assert 'line 1: checkpoint_config stays: default_hooks' in part.left
    # One below the other is no such pair.
    chain = Migration(
        tmp_path,
        "_base_ = ['schedule.py']\nseed = 1\n",
        schedule="_base_ = 'runtime.py'\ncheckpoint_config = None\n",
    )
    assert 'runtime.py is of 1.x' in chain.left
    assert 'schedule.py is of 1.x' in chain.left


def test_a_part_for_base_gets_no_hooks(tmp_path):
    part = Migration(tmp_path, BASE)
    assert 'default_hooks' not in part.cfg
    assert 'looks like a part for _base_' in part.left


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.json', '{}', r'is no Python file \(.py\)'),
        ('a.py', 'optimizer = dict(\n', 'is no Python: line'),
        ('a.py', 'x = 1 / 0\n', 'cannot read .*ZeroDivisionError'),
        ('a.py', "_base_ = 'b.py'\n", 'cannot read .*FileNotFoundError'),
        ('a.py', "_base_ = 'a' + 'b.py'\n", 'cannot read'),
        ('a.py', "_base_ = 'no_package::b.py'\n", 'cannot read'),
    ],
)
def test_refusals(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(GuardConfigError, match=message):
        migrate(path, load_overlay)


def test_hooks_that_are_there_already(tmp_path):
    migration = Migration(
        tmp_path,
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook'))\n"
        'checkpoint_config = dict(interval=5)\n'
        'log_config = dict(interval=5, hooks=[])\n',
    )
    assert migration.cfg['default_hooks'] == dict(
        checkpoint=dict(type='CheckpointHook'),
        logger=dict(type='LoggerHook', interval=5),
    )
    assert 'line 1: checkpoint is there already' in migration.left


def test_a_comment_that_another_contains(tmp_path):
    text = "lr_config = dict(  # a\n    policy='fixed')\nseed = 1  # a b\n"
    assert comments(Migration(tmp_path, text).new) == comments(text)


DRIFTING = """\
# Swin

# optimizer
optimizer = dict(type='SGD', lr=1)  # constant
# 4 GPUs only,
# so accumulate
optimizer_config = dict(grad_clip=None)
# yapf:disable
lr_config = dict(policy='fixed')
# yapf:enable
fp16 = None  # not yet
# as long as in the paper

# no validation
total_epochs = 1
# train alone
workflow = [('train', 1)]
# checked
custom_imports = dict(imports=[])
"""


def test_a_comment_goes_with_its_key(tmp_path):
    new = Migration(tmp_path, DRIFTING).new
    assert new.startswith(
        """\
# Swin

# optimizer
# 4 GPUs only,
# so accumulate
# not yet
optim_wrapper = dict(
"""
    )
    assert new.endswith(
        """\
)  # constant
# yapf:disable
param_scheduler = []
# yapf:enable

# as long as in the paper

# no validation
train_cfg = dict(by_epoch=True, max_epochs=1)
# train alone

# checked
custom_imports = dict(imports=[])
"""
    )


def test_a_comment_goes_to_the_key_that_is_there(tmp_path):
    text = (
        "default_hooks = dict(timer=dict(type='IterTimerHook'))\n"
        '# each epoch\ncheckpoint_config = dict(interval=1)\n'
        '# the first\nseed = 1\n'
    )
    new = Migration(tmp_path, text).new
    assert new.startswith('# each epoch\ndefault_hooks = dict(')
    assert '# the first\nrandomness' in new


def test_a_comment_stays_with_what_stands_there(tmp_path):
    text = (
        'checkpoint_config = dict(interval=1)\n'
        'log_config = dict(\n    interval=5,\n    hooks=[\n'
        "        # dict(type='TensorboardLoggerHook')\n    ])\n"
    )
    new = Migration(tmp_path, text).new
    assert "# dict(type='TensorboardLoggerHook')\nlog_processor = " in new
