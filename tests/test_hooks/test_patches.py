"""Foreign objects are as they were before training, however it ends."""

import ast
import re
from pathlib import Path

import pytest
from mmengine.fileio import LocalBackend
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import MODELS
from torch import nn
from toys import ToyNet, guard_hooks, make_runner, wrapper

from mmnanguard.core import TrainingHalted
from mmnanguard.hooks._shared.patches import Patches, replaced

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / 'mmnanguard'
PAGE = ROOT / 'docs' / 'en' / 'patches.md'
NAME = re.compile(r'`(\w+)\.(\w+)`')
# Of this package, or made by the function that changes them.
OWN = {
    'SampleKey',
    'audit',
    'backup',
    'cfg',
    'cls',
    'ctx',
    'guard',
    'guarded',
    'other',
    'scaler',
    'self',
    'self._batches',
    'self._guard',
    'self._streak',
    'self.coverage_warnings',
    'self.others',
    'self.params',
    'self.tensor',
    'stub',
    'tracked',
}
# Changed by hooks of PyTorch, and by numerics for the time of a window.
OTHERWISE = {
    ('Module', '_forward_hooks'),
    ('Module', '__call__'),
    ('Tensor', '_backward_hooks'),
    ('module', '_global_forward_hooks'),
}
# Rings that never meet a running training.
APART = {'migrate', 'models', 'report'}


class MeanTeacherHook(Hook):
    """A stub of mmdet's hook, which is known by its name."""


@MODELS.register_module()
class TaughtNet(ToyNet):
    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(2, 2).requires_grad_(False)


class Stop(Hook):
    """Ends training by an exception."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, **_):
        if runner.iter == 6:
            raise KeyboardInterrupt


def build(work_dir, faults, hooks=(), **guard):
    default_hooks = guard_hooks(*faults)
    default_hooks.update(
        nan_guard=dict(
            type='mmnanguard.NanGuardHook', save_rng=True, schedule='updates'
        ),
        audit=dict(type='mmnanguard.StateAuditHook', interval=2),
        autopsy=dict(type='mmnanguard.AutopsyHook'),
        dump=dict(type='mmnanguard.BatchDumpHook'),
        inputs=dict(type='mmnanguard.InputGuardHook'),
        rollback=dict(type='mmnanguard.RollbackHook'),
        fp32=dict(type='mmnanguard.Fp32ModulesHook', modules=['head']),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
        text=dict(type='mmnanguard.EventTextHook'),
        samples=dict(type='mmnanguard.BadSamplesHook'),
    )
    runner = make_runner(
        work_dir,
        wrapper(guard=guard or None),
        model=dict(type='TaughtNet'),
        default_hooks=default_hooks,
        custom_hooks=[dict(type='EMAHook'), *hooks],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=10),
    )
    # What runner.train() builds, so that it can be looked at before.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def overridden(runner):
    """Return what objects have in place of their class's own attributes."""
    objects = {
        'runner': runner,
        'loop': runner.train_loop,
        'wrapper': runner.optim_wrapper,
        'backend': LocalBackend,
        **{type(hook).__name__: hook for hook in runner.hooks},
        **dict(runner.model.named_modules()),
    }
    patches = {}
    for name, value in objects.items():
        for key, attribute in list(vars(value).items()):
            is_class_attribute = isinstance(value, type)
            if is_class_attribute or callable(getattr(type(value), key, None)):
                patches[f'{name}.{key}'] = attribute
        if hasattr(value, '_forward_hooks'):
            patches[f'{name}._forward_hooks'] = len(value._forward_hooks)
    patches['iterator'] = type(runner.train_loop.dataloader_iterator)
    patches['listener'] = runner.optim_wrapper.guard._listener
    return patches


ENDS = dict(
    normal=([dict(iter=3, site='grad')], {}, (), None),
    halt=(
        [dict(iter=3, site='grad'), dict(iter=4, site='grad')],
        dict(max_consecutive_skips=2),
        (),
        TrainingHalted,
    ),
    audit=([dict(iter=3, site='weight')], {}, (), TrainingHalted),
    interrupt=(
        [dict(iter=3, site='activation')],
        {},
        (Stop,),
        KeyboardInterrupt,
    ),
)


@pytest.mark.parametrize('end', ENDS)
def test_nothing_is_left_behind(tmp_path, end):
    faults, guard, hooks, error = ENDS[end]
    hooks = [MeanTeacherHook(), *(kind() for kind in hooks)]
    runner = build(tmp_path, faults, hooks, **guard)
    before = overridden(runner)
    if error is None:
        runner.train()
    else:
        with pytest.raises(error):
            runner.train()
    assert overridden(runner) == before


def test_a_test_after_training_leaves_nothing_behind(tmp_path):
    runner = build(tmp_path, [])
    runner.train()
    before = overridden(runner)
    runner.call_hook('before_run')
    assert overridden(runner) != before
    runner.call_hook('after_run')
    assert overridden(runner) == before


def listed(heading):
    """Return the (object and attribute, file) cells below a heading."""
    section = PAGE.read_text().split(f'## {heading}\n')[1].split('\n## ')[0]
    rows = [line.split(' | ') for line in section.splitlines()]
    return [row[:2] for row in rows if len(row) > 3][2:]


def test_the_table_has_what_hooks_replace(tmp_path, monkeypatch):
    names = [NAME.search(cell) for cell, _ in listed('While a run trains')]
    table = {(name[1], name[2]) for name in names}
    seen = set()
    replace = Patches.replace

    def spy(self, owner, name, value):
        kind = owner if isinstance(owner, type) else type(owner)
        seen.update(
            (cls.__name__, name)
            for cls in kind.__mro__
            if (cls.__name__, name) in table
        )
        is_known = any((cls.__name__, name) in table for cls in kind.__mro__)
        assert is_known, f'{kind.__name__}.{name} is not in {PAGE}'
        return replace(self, owner, name, value)

    monkeypatch.setattr(Patches, 'replace', spy)
    faults = [dict(iter=3, site='grad')]
    build(tmp_path, faults, [MeanTeacherHook()]).train()
    resumed = build(tmp_path, faults, [MeanTeacherHook()])
    resumed._resume, resumed._load_from = True, str(tmp_path / 'iter_4.pth')
    resumed.train()
    assert seen == table - OTHERWISE


def changing_files():
    """Return the files that change attributes of foreign objects."""
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in APART or '.mim' in parts:
            continue
        if any(map(is_change, ast.walk(ast.parse(path.read_text())))):
            yield path.name


def is_change(node):
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name in ('setattr', 'replaced', 'patches.replace') or (
            name.endswith(
                (
                    'self.patches.replace',
                    'add_safe_globals',
                    'root.register_module',
                    '.register_forward_hook',
                    '.register_hook',
                    '.register_step_post_hook',
                )
            )
        )
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return isinstance(node, (ast.Assign, ast.AugAssign)) and any(
        is_attribute_of_others(target)
        or ast.unparse(target).startswith('registry.')
        for target in targets
    )


def is_attribute_of_others(target):
    is_attribute = isinstance(target, ast.Attribute)
    return is_attribute and ast.unparse(target.value) not in OWN


def test_the_tables_name_each_file():
    cells = []
    for heading in ('While a run trains', 'Within one call', 'Not undone'):
        cells += [cell for _, cell in listed(heading)]
    files = {re.search(r'\[(.+)\]', cell)[1] for cell in cells}
    # Gradients, which are the guard's business, and a runner of its own.
    others = {'grad_sum.py', 'dump_replay.py'}
    assert set(changing_files()) - others == files


def test_a_change_by_somebody_else_stays():
    class Owner:
        pass

    owner, patches = Owner(), Patches()
    patches.replace(owner, 'a', 1)
    owner.a = 2
    patches.undo()
    assert owner.a == 2


def test_changes_are_undone_in_reverse_order():
    hook, patches = EMAHook(), Patches()
    before = dict(vars(hook))
    patches.replace(hook, 'momentum', 1)
    patches.replace(hook, 'momentum', 2)
    with replaced(hook, 'momentum', 3):
        assert hook.momentum == 3
    assert hook.momentum == 2
    patches.undo()
    assert vars(hook) == before
