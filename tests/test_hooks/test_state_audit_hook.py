"""Damage that bypasses the guard is detected before it is saved."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import METRICS, OPTIMIZERS
from toys import (
    BATCH_SIZE,
    ToyNet,
    assert_same,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.hooks import StateAuditHook

CHECKPOINT = dict(type='CheckpointHook', by_epoch=False, interval=4)


@METRICS.register_module()
class Score(BaseMetric):
    """A metric that improves each time except the second."""

    scores = (1.0, 0.5, 2.0, 3.0)

    def __init__(self):
        super().__init__()
        self.times = 0

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        self.times += 1
        return dict(acc=self.scores[self.times - 1])


class Spoil(Hook):
    """Write a number through ``.data`` at the end of an iteration."""

    priority = 'LOW'  # after averages have moved

    def __init__(self, where, at, value=math.nan, heal_at=None):
        self.where, self.at, self.value = where, at, value
        self.heal_at = heal_at

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        flat = self.find(runner).data.view(-1)
        if runner.iter + 1 == self.at:
            self.kept = flat[0].clone()
            flat[0] = self.value
        elif runner.iter + 1 == self.heal_at:
            flat[0] = self.kept

    def find(self, runner):
        model = runner.model
        if self.where == 'weights':
            return model.head.weight
        if self.where == 'buffers':
            return model.backbone[1].running_var
        if self.where == 'mask':
            return model.mask
        if self.where == 'optimizer':
            state = runner.optim_wrapper.optimizer.state
            return state[model.head.weight]['momentum_buffer']
        (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
        return ema.ema_model.module.head.weight


NAMES = dict(
    weights='head.weight',
    buffers='backbone.1.running_var',
    mask='mask',
    optimizer='head.weight momentum_buffer',
    ema='head.weight',
)


def build(work_dir, audit=None, hooks=(), checkpoint=None, **changes):
    """Build a guarded run of 12 iterations with a checkpoint every 4."""
    default_hooks = guard_hooks()
    default_hooks['checkpoint'] = {**CHECKPOINT, **(checkpoint or {})}
    if audit is not None:
        default_hooks['audit'] = dict(type='mmnanguard.StateAuditHook')
        default_hooks['audit'].update(audit)
    changes.setdefault('max_iters', 12)
    return make_runner(
        work_dir,
        changes.pop('optim_wrapper', wrapper()),
        default_hooks=default_hooks,
        custom_hooks=list(hooks),
        **changes,
    )


def files(folder):
    return sorted(path.name for path in Path(folder).rglob('*.pth'))


def pointer(work_dir, name='last_clean_checkpoint'):
    return Path(Path(work_dir, name).read_text()).name


def load(path):
    return torch.load(path, weights_only=False)


def tensors_of(node, name=''):
    """Return all tensors and numbers of a checkpoint, by path."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ('meta', 'message_hub', 'guard'):
                yield from tensors_of(value, f'{name}.{key}')
    elif isinstance(node, (list, tuple)):
        yield from tensors_of(dict(enumerate(node)), name)
    else:
        yield name, node


def assert_same_content(left, right):
    left, right = (dict(tensors_of(load(path))) for path in (left, right))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            value, other = (
                tensor.reshape(-1).view(torch.uint8)
                for tensor in (value, right[name])
            )
            assert torch.equal(value, other), name
        else:
            assert value == right[name], name


def by_epoch():
    return dict(
        max_iters=6, train_cfg=dict(by_epoch=True, max_epochs=3), **validated()
    )


def validated():
    return dict(
        val_cfg=dict(),
        val_dataloader=loader(make_data(BATCH_SIZE)),
        val_evaluator=dict(type='Score'),
    )


EMA = dict(type='EMAHook', momentum=0.1)
CLEAN_RUNS = {
    'every 4': {},
    'the newest only': dict(checkpoint=dict(max_keep_ckpts=1)),
    'two, with averages': dict(
        checkpoint=dict(max_keep_ckpts=2, interval=2), hooks=[EMA]
    ),
    # Averaging makes NaN of the model's mask.
    'averaged buffers': dict(hooks=[dict(EMA, update_buffers=True)]),
    'no optimizer': dict(
        checkpoint=dict(save_optimizer=False, save_last=False)
    ),
    'by epoch, the best, published': dict(
        checkpoint=dict(
            by_epoch=True,
            interval=1,
            save_best='acc',
            rule='greater',
            max_keep_ckpts=1,
            published_keys=['meta', 'state_dict'],
        ),
        **by_epoch(),
    ),
    'elsewhere': dict(checkpoint=dict(out_dir='{tmp_path}/elsewhere')),
    'plain wrapper': dict(optim_wrapper=wrapper('OptimWrapper')),
}


@pytest.mark.parametrize('kind', CLEAN_RUNS)
def test_a_clean_run_is_mmengines(tmp_path, kind):
    def train(name, audit):
        keys = dict(CLEAN_RUNS[kind], checkpoint={})
        for key, value in CLEAN_RUNS[kind].get('checkpoint', {}).items():
            if key == 'out_dir':
                value = value.format(tmp_path=tmp_path / name)
            keys['checkpoint'][key] = value
        runner = build(tmp_path / name / 'run', audit, **keys)
        runner.train()
        return runner

    plain = train('plain', None)
    audited = train('audited', dict(interval=3))

    assert_same(plain, audited)
    unpublished = [
        [name for name in files(tmp_path / folder) if '-' not in name]
        for folder in ('plain', 'audited')
    ]
    assert unpublished[0] == unpublished[1]
    assert unpublished[0]
    assert len(files(tmp_path / 'plain')) == len(files(tmp_path / 'audited'))
    for path in (tmp_path / 'plain').rglob('*.pth'):
        if '-' not in path.name:
            relative = path.relative_to(tmp_path / 'plain')
            assert_same_content(path, tmp_path / 'audited' / relative)
    left = [(tmp_path / name / 'run') for name in ('plain', 'audited')]
    last = [(path / 'last_checkpoint').read_text() for path in left]
    assert last[0].replace(str(tmp_path / 'plain'), '') == last[1].replace(
        str(tmp_path / 'audited'), ''
    )
    assert (left[1] / 'last_clean_checkpoint').read_text() == last[1]
    assert read_rows(audited, 'audit') == []
    hidden = [path for path in left[1].iterdir() if path.name[0] == '.']
    assert hidden + list(left[1].rglob('*.partial')) == []


@pytest.mark.gpu_too
@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('where', ['weights', 'buffers', 'optimizer', 'ema'])
def test_what_goes_bad_outside_any_update_halts(tmp_path, where, value):
    runner = build(
        tmp_path,
        {},
        [EMA, Spoil(where, at=8, value=value)],
        dict(max_keep_ckpts=1),
    )
    with pytest.raises(TrainingHalted) as halted:
        runner.train()

    (row,) = read_rows(runner, 'audit')
    assert (row['iter'], row['where']) == (8, [where])
    assert row['checkpoint'] == 'iter_8.pth'
    (bad,) = row['tensors']
    assert (bad['name'], bad['tensor']) == (NAMES[where], where)
    assert (bad['kind'], bad['count']) == (
        'nan' if math.isnan(value) else 'inf',
        1,
    )
    (halt,) = read_rows(runner, 'halt')
    assert halt['id'] == row['id'] == halted.value.event.id
    story = str(halted.value)
    assert halt['story'] == story
    for words in (NAMES[where], 'iter_8.pth is not written', 'iter_4.pth'):
        assert words in story
    assert files(tmp_path) == ['iter_4.pth']
    assert pointer(tmp_path) == 'iter_4.pth'
    assert pointer(tmp_path, 'last_checkpoint') == 'iter_4.pth'


def test_it_is_found_between_checkpoints(tmp_path):
    runner = build(tmp_path, dict(interval=3), [EMA, Spoil('ema', at=5)])
    with pytest.raises(TrainingHalted):
        runner.train()
    (row,) = read_rows(runner, 'audit')
    assert (row['iter'], row['checkpoint']) == (6, None)


def test_warn_goes_on_without_checkpoints(tmp_path):
    spoil = Spoil('mask', at=6, heal_at=10)
    keys = dict(checkpoint=dict(max_keep_ckpts=1))
    audit = dict(action='warn', interval=None)
    runner = build(tmp_path / 'ends', audit, [Spoil('mask', at=6)], **keys)
    runner.train()
    assert runner.iter == 12
    rows = read_rows(runner, 'audit')
    assert [row['checkpoint'] for row in rows] == ['iter_8.pth', 'iter_12.pth']
    assert files(tmp_path / 'ends') == ['iter_4.pth']
    assert pointer(tmp_path / 'ends') == 'iter_4.pth'

    runner = build(tmp_path / 'heals', audit, [spoil], **keys)
    runner.train()
    assert len(read_rows(runner, 'audit')) == 1
    assert files(tmp_path / 'heals') == ['iter_12.pth']
    assert pointer(tmp_path / 'heals') == 'iter_12.pth'


@pytest.mark.parametrize('interval', [5, None])
def test_what_a_window_may_yet_undo_halts_nothing(tmp_path, interval):
    """Iterations 4 to 6 are one window, by gradient accumulation."""
    hooks = [
        dict(
            type='mmnanguard.FaultInjectionHook',
            faults=[dict(iter=4, site='buffer', value='nan')],
        )
    ]
    runner = build(
        tmp_path,
        dict(interval=interval),
        hooks,
        optim_wrapper=wrapper(accumulative_counts=3),
    )
    runner.train()
    assert [row['iter'] for row in read_rows(runner)] == [6]
    (row,) = read_rows(runner, 'audit')
    assert (row['iter'], row['checkpoint']) == (4, 'iter_4.pth')
    assert files(tmp_path) == ['iter_12.pth', 'iter_8.pth']


class NeverSteps(ToyNet):
    """Runs backward passes, and lets no step follow."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self(**data, mode='loss')
        optim_wrapper.backward(sum(losses.values()))
        return losses


def test_a_window_that_never_ends_is_looked_at(tmp_path):
    runner = build(
        tmp_path,
        dict(interval=2),
        [Spoil('weights', at=3)],
        dict(interval=100),
        model=NeverSteps(),
    )
    runner.train()
    rows = read_rows(runner, 'audit')
    assert [row['iter'] for row in rows] == [5, 9, 12]


def test_another_hook_can_mend_it(tmp_path):
    class Mend(Hook):
        def after_audit(self, runner, audit):
            assert audit.where == ('weights',)
            runner.model.head.weight.data[0, 0] = 0
            audit.is_handled = True

    runner = build(tmp_path, {}, [Mend(), Spoil('weights', at=8)])
    runner.train()
    assert len(read_rows(runner, 'audit')) == 1
    assert read_rows(runner, 'halt') == []
    assert files(tmp_path) == ['iter_12.pth', 'iter_4.pth']


def test_the_best_one_is_not_replaced_by_a_bad_one(tmp_path):
    keys = dict(
        by_epoch(),
        checkpoint=dict(
            by_epoch=True, interval=1, save_best='acc', rule='greater'
        ),
    )
    runner = build(
        tmp_path, dict(action='warn'), [Spoil('mask', at=8)], **keys
    )
    runner.train()
    assert files(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    rows = read_rows(runner, 'audit')
    assert [
        (row['iter'], row['epoch'], row['checkpoint']) for row in rows
    ] == [
        (12, 2, 'epoch_2.pth'),
        (12, 2, 'the best checkpoint'),
        (18, 3, 'epoch_3.pth'),
        (18, 3, 'the best checkpoint'),
    ]
    assert runner.message_hub.get_info('best_score') == 1.0


def test_a_best_one_that_takes_its_own_place_stays(tmp_path):
    class Validate(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            (saver,) = (
                hook
                for hook in runner.hooks
                if isinstance(hook, CheckpointHook)
            )
            if runner.iter + 1 == 6:
                for score in (1.0, 2.0):
                    saver.after_val_epoch(runner, dict(acc=score))

    keys = dict(checkpoint=dict(save_best='acc', rule='greater'))
    build(tmp_path, {}, [Validate()], **keys).train()
    assert 'best_acc_iter_5.pth' in files(tmp_path)


def test_a_save_by_someone_else_is_audited(tmp_path):
    class Save(Hook):
        priority = 'VERY_LOW'

        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter + 1 in (5, 7):
                runner.save_checkpoint(
                    runner.work_dir, f'own_{runner.iter + 1}.pth'
                )

    hooks = [Spoil('mask', at=6), Save()]
    runner = build(tmp_path, dict(action='warn'), hooks)
    runner.train()
    assert files(tmp_path) == ['iter_4.pth', 'own_5.pth']


@pytest.mark.parametrize(
    ('interval', 'looks'), [(None, 3), (4, 3), (2, 6), (3, 6), (1000, 3)]
)
def test_no_iteration_is_looked_at_twice(
    tmp_path, monkeypatch, interval, looks
):
    from mmnanguard.hooks.recovery import state_audit_hook as module

    seen = []
    check = module.StateAudit.check

    def look(self, kept):
        seen.append(self)
        return check(self, kept)

    monkeypatch.setattr(module.StateAudit, 'check', look)
    build(tmp_path, dict(interval=interval)).train()
    # NanGuardHook looks once before the first iteration.
    assert len(seen[1:]) == looks
    assert len(set(map(id, seen[1:]))) == 1


@OPTIMIZERS.register_module()
class ThirdStepIsNan(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        self.num_calls = getattr(self, 'num_calls', 0) + 1
        if self.num_calls == 3:
            self.param_groups[0]['params'][0].data.fill_(math.nan)


def test_the_step_that_made_it_is_named(tmp_path):
    runner = build(
        tmp_path,
        dict(interval=1),
        optim_wrapper=wrapper(
            optimizer='ThirdStepIsNan', guard=dict(check_step='never')
        ),
    )
    with pytest.raises(TrainingHalted) as error:
        runner.train()
    story = str(error.value)
    assert 'the step of iteration 3 (ThirdStepIsNan with lr=' in story
    assert 'outside any guarded update' not in story


def test_a_clean_audit_reads_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / 'benchmarks')
    from benchmark import HostReads

    counts = []

    class Counted(StateAuditHook):
        def after_train_iter(self, *args, **kwargs):
            with HostReads() as reads:
                super().after_train_iter(*args, **kwargs)
            counts.append(reads.count)

    build(tmp_path, None, [EMA, Counted(interval=5)]).train()
    assert [n for n in range(12) if counts[n]] == [4, 9]
    assert counts[4] == counts[9] == 1


def test_it_leaves_runner_and_hooks_as_they_were(tmp_path):
    runner = build(tmp_path, {})
    runner.train()
    for owner in (runner, *runner.hooks):
        assert not {
            'save_checkpoint',
            '_save_checkpoint_with_step',
            '_save_best_checkpoint',
            '_publish_model',
        } & set(vars(owner))


@pytest.mark.parametrize(
    'keys', [dict(action='stop'), dict(interval=0), dict(interval=1.5)]
)
def test_what_is_not_allowed(keys):
    with pytest.raises(GuardConfigError, match=repr(*keys.values())):
        StateAuditHook(**keys)
