"""A key that a child config deletes from its base stays deleted after the
migration of the two files.
"""

import pytest
from migrating import FP32, Migration

from mmnanguard.migrate import migrate
from mmnanguard.optim.apply_guard import load_overlay

BASE = """\
optimizer = dict(
    type='AdamW', lr=0.1, constructor='Mine',
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.)}))
optimizer_config = dict(
    type='GradientCumulativeOptimizerHook', cumulative_iters=4,
    grad_clip=dict(max_norm=1, norm_type=1))
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""
CLIP = dict(max_norm=1, norm_type=1)
HEAD = {'head': dict(lr_mult=10.0)}
SAME = dict(
    type=FP32,
    accumulative_counts=4,
    clip_grad=CLIP,
    constructor='Mine',
    paramwise_cfg=dict(custom_keys=HEAD),
    optimizer=dict(type='AdamW', lr=0.1),
)
NONE = 'optimizer_config = dict(grad_clip=None)\n'
CASES = {
    'optimizer = dict(lr=2)\n': dict(optimizer=dict(type='AdamW', lr=2)),
    NONE: dict(clip_grad=None),
    'optimizer_config = dict(_delete_=True)\n': dict(
        clip_grad=None, accumulative_counts=1
    ),
    'optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=35))\n': (
        dict(clip_grad=dict(max_norm=35), accumulative_counts=1)
    ),
    'optimizer_config = dict(grad_clip=dict(max_norm=35))\n': dict(
        clip_grad=dict(max_norm=35, norm_type=1)
    ),
    "optimizer = dict(_delete_=True, type='SGD', lr=1)\n": dict(
        optimizer=dict(type='SGD', lr=1),
        constructor='DefaultOptimWrapperConstructor',
        paramwise_cfg=None,
    ),
    "optimizer = dict(_delete_=True, type='SGD', lr=1, paramwise_cfg=dict("
    'custom_keys=dict(norm=dict(decay_mult=0.))))\n': dict(
        optimizer=dict(type='SGD', lr=1),
        constructor='DefaultOptimWrapperConstructor',
        paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
    ),
}


def migrated_with_base(tmp_path, text, base=BASE):
    """Return the child's config after its base is migrated too."""
    Migration(tmp_path, f"_base_ = 'base.py'\n{text}", base=base)
    path = tmp_path / 'base.py'
    path.write_text(migrate(path, load_overlay).new)
    return Migration(tmp_path, (tmp_path / 'config.py').read_text()).cfg


@pytest.mark.parametrize('text', CASES)
def test_of_the_optimizer(text, tmp_path):
    wrapper = migrated_with_base(tmp_path, text)['optim_wrapper']
    assert wrapper == {**SAME, **CASES[text]}


def test_of_a_loop(tmp_path):
    text = (
        "runner = dict(_delete_=True, type='IterBasedRunner', max_iters=9)\n"
        'evaluation = dict(interval=3)\n'
    )
    cfg = migrated_with_base(
        tmp_path, text, f'{BASE}evaluation = dict(start=2)\n'
    )
    # Only the runner is deleted: mmcv merges the two of evaluation.
    expected = dict(by_epoch=False, max_iters=9, val_interval=3, val_begin=2)
    assert cfg['train_cfg'] == expected
    longer = migrated_with_base(tmp_path, 'runner = dict(max_epochs=36)\n')
    assert longer['train_cfg'] == dict(by_epoch=True, max_epochs=36)


@pytest.mark.parametrize(
    'child_key', ['', 'checkpoint_config = dict(interval=8)\n']
)
@pytest.mark.parametrize('unit', ['iters', 'epochs'])
def test_what_counts_as_the_loop_does(unit, child_key, tmp_path):
    """Mmcv takes by_epoch from the runner, even from that of the child."""
    names = {'iters': 'Iter', 'epochs': 'Epoch'}
    base = 'checkpoint_config = dict(interval=9)\nlog_config = dict('
    base += "interval=9, hooks=[dict(type='TextLoggerHook')])\n"
    loops = {
        key: f"runner = dict(type='{name}BasedRunner', max_{key}=9)\n"
        for key, name in names.items()
    }
    (other,) = {*names} - {unit}
    child = loops[unit].replace('dict(', 'dict(_delete_=True, ') + child_key
    cfg = migrated_with_base(tmp_path, child, base + loops[other])
    by_epoch = unit == 'epochs'
    assert cfg['default_hooks']['checkpoint'] == dict(
        type='CheckpointHook',
        by_epoch=by_epoch,
        interval=8 if child_key else 9,
    )
    assert cfg['log_processor']['by_epoch'] == by_epoch


def test_of_a_wrapper(tmp_path):
    wrapper = f'optim_wrapper = dict(type={FP32!r}, clip_grad=dict(max_norm=1)'
    text = 'optimizer_config = dict(_delete_=True)\nfp16 = None\n'
    base = f"{wrapper}, optimizer=dict(type='SGD', lr=1))\n"
    cfg = migrated_with_base(tmp_path, text, base)
    assert cfg['optim_wrapper']['clip_grad'] is None


def test_of_a_base_that_is_migrated_before(tmp_path):
    """MMEngine leaves a _delete_ in the value if the base lacks the key."""
    base = (
        'optim_wrapper = dict(clip_grad=dict(max_norm=1), '
        "optimizer=dict(type='SGD', lr=1, momentum=0.9))\n"
        'train_cfg = dict(by_epoch=True, max_epochs=3)\n'
        "param_scheduler = [dict(type='ConstantLR')]\n"
    )
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\n"
        "optimizer = dict(_delete_=True, type='AdamW', lr=2)\n"
        'optimizer_config = dict(_delete_=True, grad_clip=None)\n'
        "lr_config = dict(_delete_=True, policy='fixed')\n"
        'checkpoint_config = dict(_delete_=True, interval=1)\n'
        'evaluation = dict(_delete_=True, interval=1)\n',
        base=base,
    )
    assert child.cfg['param_scheduler'] == []
    assert child.cfg['optim_wrapper'] == dict(
        type=FP32, clip_grad=None, optimizer=dict(type='AdamW', lr=2)
    )
    assert 'log_processor' not in child.cfg
    assert '_delete_' not in '\n'.join([child.left, child.changed])


def test_of_an_optimizer_that_is_computed(tmp_path):
    text = "seed = 1\noptimizer = dict(_delete_=True, type='SGD', lr=seed)\n"
    base = "optimizer = dict(type='AdamW', lr=1, betas=(0.9, 0.99))\n"
    wrapper = migrated_with_base(tmp_path, text, base)['optim_wrapper']
    assert wrapper['optimizer'] == dict(type='SGD', lr=1)


def test_of_a_loop_whose_base_is_migrated_before(tmp_path):
    base = "log_processor = dict(type='LogProcessor', by_epoch=True)\n"
    child = Migration(
        tmp_path,
        "_base_ = 'base.py'\n"
        "runner = dict(type='IterBasedRunner', max_iters=9)\n",
        base=f'{base}train_cfg = dict(by_epoch=True, max_epochs=1)\n',
    )
    assert child.cfg['log_processor']['by_epoch'] is False
