"""Guards among the hooks of a config, wherever they are written."""

import pytest
from migrating import Migration, migrate_in_place

GUARDED = """
model = dict(type='M')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
CHECK = "dict(type='CheckInvalidLossHook', interval=50)"
SYNC = "dict(type='SyncBuffersHook')"
READ_BASE = """
from mmengine.config import read_base
with read_base():
    from .base import *
"""
OWN = """
class Asserts(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        assert torch.isfinite(outputs['loss'])


class More(Asserts):
    def before_run(self, runner):
        pass


class Warns(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if not torch.isfinite(outputs['loss']):
            runner.logger.warning('NaN')
"""


def kinds_in(hooks):
    return [hook['type'] for hook in hooks or ()]


@pytest.mark.parametrize(
    'text',
    [
        f'custom_hooks = [{SYNC}, {CHECK}]',
        f'check = {CHECK}\ncustom_hooks = [{SYNC}, check]',
        f'check = {CHECK}\ncustom_hooks = [{SYNC}]\ncustom_hooks += [check]',
        f'custom_hooks = [{SYNC}]\ncustom_hooks.append({CHECK})',
        f'custom_hooks = [{SYNC}]\ncustom_hooks.insert(0, {CHECK})',
        f'custom_hooks = [{SYNC}]\ncustom_hooks.extend([{CHECK}])',
        f'custom_hooks = [{SYNC}]\nif True:  # now\n'
        f'    # a comment\n    custom_hooks.append({CHECK})',
        f'more = [{CHECK}]\ncustom_hooks = [{SYNC}] + more',
        f'more = [{SYNC}, {CHECK}]\ncustom_hooks = more',
        f'custom_hooks = [hook for hook in [{SYNC}, {CHECK}]]',
    ],
)
def test_a_guard_goes(text, tmp_path):
    migration = Migration(tmp_path, f'{GUARDED}{text}\n')
    assert kinds_in(migration.cfg['custom_hooks']) == ['SyncBuffersHook']
    assert 'CheckInvalidLossHook' not in migration.new
    assert 'CheckInvalidLossHook -> the guard' in migration.notes_of('done')
    assert not migration.left


@pytest.mark.parametrize(
    'text',
    [
        f'default_hooks = dict(logger=None, check={CHECK})',
        f"default_hooks = dict(logger=None)\ndefault_hooks['a'] = {CHECK}",
        f'default_hooks = dict(logger=None)\ndefault_hooks.update(a={CHECK})',
    ],
)
def test_a_guard_among_the_default_hooks_goes(text, tmp_path):
    migration = Migration(tmp_path, f'{GUARDED}{text}\n')
    assert migration.cfg['default_hooks']['logger'] is None
    assert 'nan_guard' in migration.cfg['default_hooks']
    assert 'CheckInvalidLossHook' not in migration.new


def test_a_class_goes_and_what_it_replaces_does_not_come_back(tmp_path):
    text = (
        f'{READ_BASE}from some.where import CheckInvalidLossHook as Check\n'
        f'{GUARDED}custom_hooks = [dict(type=Check)]\n'
    )
    base = f'custom_hooks = [{SYNC}]\n'
    assert Migration(tmp_path, text, base=base).cfg['custom_hooks'] == []


@pytest.mark.parametrize(
    ('text', 'base'),
    [
        (f"_base_ = 'base.py'\n{GUARDED}", f'custom_hooks = [{CHECK}]\n'),
        (f'{READ_BASE}{GUARDED}', f'custom_hooks = [{CHECK}]\n'),
        (
            f"_base_ = 'base.py'\n{GUARDED}"
            f'custom_hooks = _base_.custom_hooks + [{SYNC}]\n',
            f'custom_hooks = [{CHECK}]\n',
        ),
        (
            f"{GUARDED}kinds = ['CheckInvalidLossHook']\n"
            'custom_hooks = [dict(type=kind) for kind in kinds]\n',
            '',
        ),
    ],
)
def test_a_guard_that_is_written_elsewhere_is_named(text, base, tmp_path):
    migration = Migration(tmp_path, text, base=base)
    assert 'CheckInvalidLossHook is inherited or computed' in migration.left


def test_a_hook_is_known_by_what_it_does(tmp_path):
    migration = Migration(
        tmp_path,
        f"{GUARDED}custom_imports = dict(imports=['own'])\n"
        "custom_hooks = [dict(type='Asserts'), dict(type='More'), "
        "dict(type='Warns')]\n",
        own=OWN,
    )
    assert kinds_in(migration.cfg['custom_hooks']) == ['More', 'Warns']
    assert 'Asserts -> the guard' in migration.notes_of('done')
    assert 'More ends the run' in migration.left
    assert 'Warns' not in migration.left


@pytest.mark.parametrize('is_marked', [True, False])
def test_a_hook_of_the_project_is_found(is_marked, tmp_path):
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / 'own.py').write_text(OWN)
    if is_marked:
        (tmp_path / 'setup.py').touch()
    (tmp_path / 'configs').mkdir()
    text = f"{GUARDED}custom_hooks = [dict(type='Asserts')]\n"
    migration = Migration(tmp_path / 'configs', text)
    assert ('Asserts' not in migration.new) == is_marked


def test_the_options_of_a_hook_are_no_hooks(tmp_path):
    migration = Migration(
        tmp_path,
        "seed = 1\ncustom_hooks = [dict(type='Mine', data=dict(type='Images', "
        "pipeline=[dict(type='Resize')]))]\n",
    )
    assert 'Mine was written for mmcv' in migration.left
    assert 'Images' not in migration.left
    assert 'Resize' not in migration.left


@pytest.mark.parametrize(
    'more', ['', f'custom_hooks = _base_.custom_hooks + [{SYNC}, {CHECK}]\n']
)
def test_a_guard_of_a_base_goes_with_its_base(more, tmp_path):
    cfg, notes = migrate_in_place(
        tmp_path,
        f"_base_ = 'base.py'\n{GUARDED}{more}",
        base=f'custom_hooks = [{SYNC}, {CHECK}]\n'
        f'default_hooks = dict(check={CHECK})\n',
    )
    assert {*kinds_in(cfg['custom_hooks'])} == {'SyncBuffersHook'}
    assert 'check' not in cfg['default_hooks']
    assert 'nan_guard' in cfg['default_hooks']
    assert 'inherited or computed' not in notes


def test_a_guard_in_one_place_does_not_hide_one_in_another(tmp_path):
    text = f"_base_ = 'base.py'\n{GUARDED}default_hooks = dict(a={CHECK})\n"
    base = f'custom_hooks = [{CHECK}]\n'
    migration = Migration(tmp_path, text, base=base)
    assert 'inherited or computed' in migration.left


def test_a_variable_that_something_reads_stays(tmp_path):
    text = (
        f'{GUARDED}check = {CHECK}\ncustom_hooks = [check, '
        "dict(type='SyncBuffersHook', interval=check['interval'])]\n"
    )
    migration = Migration(tmp_path, text)
    (hook,) = migration.cfg['custom_hooks']
    assert hook == dict(type='SyncBuffersHook', interval=50)
    assert migration.cfg['check']['interval'] == 50
