"""A rollback restores an earlier state, while iterations count on."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from toys import (
    ToyNet,
    assert_finite,
    everything,
    guard_hooks,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.core import (
    GuardConfigError,
    RollbackUnavailable,
    TrainingHalted,
)
from mmnanguard.numerics import load_plain

POLICY = dict(
    max_consecutive_skips=3, max_skip_rate=None, when_exhausted='rollback'
)


class Remember(Hook):
    """A hook that copies the state after some iterations; 0 is the start."""

    priority = 'LOWEST'

    def __init__(self):
        self.states = {}
        self.batches = []
        self.rates = []

    def before_train(self, runner):
        self.states[0] = clone(everything(runner))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch['data_samples'][0].img_path)
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.states[runner.iter + 1] = clone(everything(runner))
        for hook in runner.hooks:
            if hasattr(hook, 'ema_model'):
                self.states[runner.iter + 1].update(
                    ('ema ' + name, tensor.clone())
                    for name, tensor in hook.ema_model.state_dict().items()
                )


class SpoilWeights(Hook):
    """Write NaN into a weight, without going through an update."""

    def __init__(self, iterations, what='head.weight'):
        self.iterations, self.what = iterations, what

    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 in self.iterations:
            tensor = dict(runner.model.named_parameters())[self.what]
            tensor.data[0] = math.nan


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def train(work_dir, faults, hooks=(), custom=(), **keys):
    rollback = dict(type='mmnanguard.RollbackHook', interval=4, num_kept=2)
    rollback.update(keys.pop('rollback', {}))
    remember = Remember()
    runner = make_runner(
        work_dir,
        keys.pop('optim_wrapper', None)
        or wrapper(
            *keys.pop('type', ()),
            lr=0.01,
            optimizer='AdamW',
            guard=dict(POLICY, **keys.pop('guard', {})),
            **keys.pop('wrapper', {}),
        ),
        default_hooks={
            **guard_hooks(
                *(
                    dict(iter=number, site='activation', where='head')
                    for number in faults
                )
            ),
            'rollback': rollback,
            **dict(hooks),
        },
        custom_hooks=[remember, *custom],
        max_iters=keys.pop('max_iters', 16),
        **keys,
    )
    try:
        runner.train()
    finally:
        runner.remembered = remember
    return runner


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.gpu_too
def test_the_newest_state_before_the_trouble_comes_back(tmp_path):
    runner = train(tmp_path, faults=(10, 11, 12))
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (12, 8)
    updates = read_rows(runner)
    assert [r['action'] for r in updates] == ['skip', 'skip', 'rollback']
    assert row['id'] == updates[-1]['id']
    states = runner.remembered.states
    assert_equal(states[12], states[8])
    # and it trains on from there
    assert not torch.equal(states[13]['head.weight'], states[8]['head.weight'])
    guard = runner.optim_wrapper.guard
    assert guard.state.num_rollbacks == 1
    assert guard.state.consecutive_skips == 0
    assert guard.state.total_skips == 3
    assert runner.iter == 16


def test_time_goes_on(tmp_path):
    schedule = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=16)
    keys = dict(param_scheduler=schedule)
    runner = train(tmp_path / 'a', faults=(10, 11, 12), **keys)
    plain = train(tmp_path / 'b', faults=(), **keys)
    assert runner.remembered.batches == plain.remembered.batches
    assert runner.remembered.rates == plain.remembered.rates


@pytest.mark.parametrize(
    'clip',
    [
        None,
        dict(type='AutoClip', percentile=50, window=5),
        dict(type='ZClip', warmup=2, alpha=0.5, z_threshold=0.1),
    ],
    ids=['no clip', 'AutoClip', 'ZClip'],
)
def test_what_follows_equals_a_run_from_that_state(tmp_path, clip):
    """The oracle: load that state by hand before the next iteration."""

    class LoadByHand(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, **kwargs):
            if runner.iter + 1 == 8:
                self.model = clone(runner.model.state_dict())
                self.optimizer = _copy(runner.optim_wrapper)
                self.clip_rule = runner.optim_wrapper.guard.clip_rule
            elif runner.iter + 1 == 12:
                runner.optim_wrapper.guard.clip_rule = self.clip_rule
                runner.model.load_state_dict(self.model)
                runner.optim_wrapper.optimizer.load_state_dict(self.optimizer)

    keys = dict(faults=(10, 11, 12), wrapper=dict(clip_grad=clip))
    runner = train(tmp_path / 'a', **keys)
    by_hand = train(
        tmp_path / 'b',
        **keys,
        guard=dict(max_consecutive_skips=None, when_exhausted='halt'),
        custom=[LoadByHand()],
    )
    assert_equal(everything(runner), everything(by_hand))


def _copy(wrapper_):
    import copy

    return copy.deepcopy(wrapper_.optimizer.state_dict())


def test_weights_that_went_bad_outside_any_update_come_back(tmp_path):
    spoil = SpoilWeights([9])
    runner = train(tmp_path, faults=(), custom=[spoil])
    (row,) = read_rows(runner, 'rollback')
    (update,) = read_rows(runner)
    assert update['cause'] == 'weight_nonfinite'
    assert (row['iter'], row['to']) == (10, 8)
    assert_finite(runner)
    states = runner.remembered.states
    assert_equal(states[10], states[8])


@pytest.mark.parametrize('action', ['halt', 'warn'])
def test_what_an_audit_finds_is_mended_at_once(tmp_path, action):
    audit = dict(type='mmnanguard.StateAuditHook', interval=3, action=action)
    runner = train(
        tmp_path,
        faults=(),
        custom=[SpoilWeights([9])],
        hooks=dict(audit=audit),
    )
    (row,) = read_rows(runner, 'rollback')
    (audit,) = read_rows(runner, 'audit')
    assert (row['iter'], row['to']) == (9, 8)
    assert row['id'] == audit['id']
    assert read_rows(runner) == []  # no update has met it
    states = runner.remembered.states
    assert_equal(states[9], states[8])


def test_an_audit_halts_where_nothing_is_left(tmp_path):
    audit = dict(type='mmnanguard.StateAuditHook', interval=3)
    with pytest.raises(TrainingHalted, match='the state of the run is bad'):
        train(
            tmp_path,
            faults=(),
            custom=[SpoilWeights([3, 9])],
            hooks=dict(audit=audit),
            rollback=dict(max_rollbacks=1),
        )


def test_bad_states_are_not_kept(tmp_path):
    # Bad as the state of iteration 8 is due, seen by the update after it.
    runner = train(tmp_path, faults=(), custom=[SpoilWeights([8])])
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (9, 4)
    assert_finite(runner)


def test_the_same_trouble_again_goes_further_back(tmp_path):
    runner = train(
        tmp_path,
        faults=(10, 11, 12, 14, 15, 16),
        rollback=dict(interval=4, num_kept=3),
    )
    rows = read_rows(runner, 'rollback')
    assert [(row['iter'], row['to']) for row in rows] == [(12, 8), (16, 4)]
    assert [row['num_rollbacks'] for row in rows] == [1, 2]


def test_enough_is_enough(tmp_path):
    with pytest.raises(TrainingHalted, match='which is max_rollbacks'):
        train(
            tmp_path,
            faults=(5, 6, 7, 9, 10, 11, 13, 14, 15),
            rollback=dict(max_rollbacks=2),
        )


def test_nothing_to_go_back_to(tmp_path, monkeypatch):
    class SpoilAll(SpoilWeights):
        def before_train(self, runner):
            next(runner.model.parameters()).data[0] = math.nan

        priority = 'VERY_HIGH'

    with pytest.raises(
        RollbackUnavailable, match='bad before the first update'
    ):
        train(tmp_path, faults=(), custom=[SpoilAll([])])


@pytest.mark.parametrize('has_ema', [False, True])
def test_else_the_newest_clean_checkpoint(tmp_path, has_ema):
    class ForgetAndSpoil(Hook):
        """Clear the states in memory and spoil the newest file."""

        priority = 'LOWEST'

        def after_train_iter(self, runner, **kwargs):
            if runner.iter + 1 != 9:
                return
            path = tmp_path / 'iter_8.pth'
            saved = load_plain(path)
            saved['state_dict']['head.weight'][0] = math.nan
            torch.save(saved, path)
            for hook in runner.hooks:
                if type(hook).__name__ == 'RollbackHook':
                    hook._states._kept = []
                    hook._states.add = lambda *args: None

    hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)
    )
    if has_ema:
        hooks['ema'] = dict(type='EMAHook', momentum=0.1)
    runner = train(
        tmp_path,
        (10, 11, 12),
        hooks=hooks,
        custom=[ForgetAndSpoil()],
        guard=dict(spike=dict(window=20, warmup=20)),
        wrapper=dict(clip_grad=dict(type='AutoClip', percentile=50)),
        max_iters=12,
    )
    saved = load_plain(tmp_path / 'iter_4.pth')['optimizer']
    guard = runner.optim_wrapper.guard
    assert len(guard.state.recent_norms) == 4
    assert (
        guard.state.to_dict()['recent_norms']
        == (saved['guard']['state']['recent_norms'])
    )
    assert guard.clip_rule.to_dict() == saved['guard']['clip']
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (12, 4)
    assert row['path'].endswith('iter_4.pth')
    states = runner.remembered.states
    assert_equal(states[12], states[4])
    assert ('ema steps' in states[4]) == has_ema


def test_a_checkpoint_that_is_newer_than_the_states_in_memory(tmp_path):
    """The same trouble again goes further back than to that file."""
    runner = train(
        tmp_path,
        faults=(10, 11, 12, 14, 15, 16),
        hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)
        ),
        rollback=dict(interval=500),
    )
    first, second = read_rows(runner, 'rollback')
    assert (first['iter'], first['to']) == (12, 8)
    assert first['path'].endswith('iter_8.pth')
    states = runner.remembered.states
    assert_equal(states[12], states[8])
    assert (second['iter'], second['to'], second['path']) == (16, 0, '')


def test_averages_come_back_and_raw_weights_stay_raw(tmp_path):
    runner = train(
        tmp_path,
        faults=(10, 11, 12),
        hooks=dict(ema=dict(type='EMAHook', momentum=0.1)),
    )
    states = runner.remembered.states
    assert_equal(states[12], states[8])
    ema = states[8]['ema module.head.weight']
    assert not torch.equal(ema, states[8]['head.weight'])


@pytest.mark.parametrize('accumulation', [1, 2])
def test_float16_with_a_lower_scale_and_learning_rate(tmp_path, accumulation):
    runner = train(
        tmp_path,
        faults=range(11, 11 + 3 * accumulation),
        type=('NanGuardAmpOptimWrapper',),
        wrapper=dict(
            dtype='float16',
            loss_scale=dict(init_scale=64.0, min_scale=20.0),
            accumulative_counts=accumulation,
        ),
        rollback=dict(scale_factor=0.25),
        max_iters=20,
    )
    (row,) = read_rows(runner, 'rollback')
    assert row['to'] == 8
    assert row['loss_scale'] == 20.0
    assert_finite(runner)


def test_the_state_is_kept_where_updates_between_the_skips_are_sound(tmp_path):
    """A rollback would throw away what they have learnt."""
    bad = range(2, 20, 2)
    guard = dict(max_skip_rate=0.3, skip_rate_window=4)
    runner = train(tmp_path, faults=bad, guard=guard, max_iters=10)
    plain = train(
        tmp_path / 'plain',
        faults=bad,
        guard=dict(when_exhausted='halt'),
        max_iters=10,
    )
    assert read_rows(runner, 'rollback') == []
    assert 'training goes back' not in read_log(runner)
    assert 'rollback' in [row['action'] for row in read_rows(runner)]
    assert_equal(everything(runner), everything(plain))
    with pytest.raises(TrainingHalted, match='which is max_rollbacks'):
        train(
            tmp_path / 'all', bad, guard=guard, rollback=dict(max_rollbacks=1)
        )


@MODELS.register_module()
class Exploding(ToyNet):
    """A model whose loss grows tenfold in each of a few iterations."""

    num_seen = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        self.num_seen += 1
        if 8 < self.num_seen < 14:
            losses['loss_cls'] = losses['loss_cls'] * 10 ** (self.num_seen - 8)
        return losses


@pytest.mark.parametrize('recovery', [2, None])
def test_the_learning_rate_is_lowered_for_an_explosion(tmp_path, recovery):
    runner = train(
        tmp_path,
        faults=(11, 12, 13),
        model=dict(type='Exploding'),
        rollback=dict(lr_factor=0.5, lr_recovery=recovery),
    )
    (row,) = read_rows(runner, 'rollback')
    assert (row['to'], row['lr_factor']) == (8, 0.5)
    assert '->' in row['evidence']
    factors = runner.message_hub.get_scalar('train/guard/lr_factor').data[0]
    assert min(factors) == (0.75 if recovery else 0.5)
    assert factors[-1] == (1.0 if recovery else 0.5)


def test_the_learning_rate_stays_without_evidence(tmp_path):
    runner = train(tmp_path, faults=(10, 11, 12), rollback=dict(lr_factor=0.5))
    (row,) = read_rows(runner, 'rollback')
    assert row['lr_factor'] == 1.0
    assert 'had exploded' in row['evidence']
    assert runner.optim_wrapper.guard.state.lr_factor == 1.0


def test_no_rollback_to_the_present_state(tmp_path):
    """Nothing was committed since the state of iteration 8."""
    runner = train(tmp_path, faults=(9, 10, 11))
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (11, 4)


@pytest.mark.parametrize('first', [1, 10])
def test_no_rollback_when_nothing_was_committed(tmp_path, first):
    with pytest.raises(RollbackUnavailable) as error:
        train(tmp_path, faults=range(first, 17))
    since = 'training began'
    if first == 10:
        since = 'training went back to iteration 8'
    assert f'nothing was committed since {since}' in str(error.value)


def test_random_numbers_on_request(tmp_path):
    class Draw(Hook):
        priority = 'LOWEST'

        def __init__(self):
            self.drawn = {}

        def after_train_iter(self, runner, **kwargs):
            self.drawn[runner.iter + 1] = torch.rand(()).item()

    for restore in (False, True):
        draw = Draw()
        train(
            tmp_path / str(restore),
            faults=(10, 11, 12),
            custom=[draw],
            rollback=dict(restore_rng=restore),
        )
        assert (draw.drawn[12] == draw.drawn[8]) == restore


@pytest.mark.gpu_too
def test_rollbacks_are_counted_over_resumes(tmp_path):
    save = dict(type='CheckpointHook', by_epoch=False, interval=6)
    keys = dict(hooks=dict(checkpoint=save), rollback=dict(max_rollbacks=1))
    train(tmp_path, faults=(3, 4, 5), max_iters=6, **keys)
    with pytest.raises(TrainingHalted, match='Rolled back 1 times'):
        train(tmp_path, faults=(8, 9, 10), resume=True, **keys)


def test_a_clean_run_is_the_plain_one(tmp_path):
    runner = train(tmp_path / 'a', faults=())
    plain = make_runner(
        tmp_path / 'b',
        wrapper(lr=0.01, optimizer='AdamW'),
        default_hooks=guard_hooks(),
        max_iters=16,
    )
    plain.train()
    assert_equal(everything(runner), everything(plain))


def test_the_guard_needs_the_hook(tmp_path):
    runner = make_runner(
        tmp_path, wrapper(guard=POLICY), default_hooks=guard_hooks()
    )
    with pytest.raises(GuardConfigError, match='RollbackHook'):
        runner.train()


@pytest.mark.parametrize(
    'bad',
    [
        dict(interval=0),
        dict(num_kept=True),
        dict(max_rollbacks=0.5),
        dict(lr_factor=0),
        dict(scale_factor=2),
        dict(lr_recovery=0),
    ],
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(GuardConfigError, match=next(iter(bad))):
        train(tmp_path, faults=(), rollback=bad)


@MODELS.register_module()
class Forgetful(ToyNet):
    """A model whose loss returns to its first level after some iteration."""

    def __init__(self, since):
        super().__init__()
        self.since, self.num_seen = since, 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        self.num_seen += 1
        level = 1.0 if 8 < self.num_seen <= self.since else 10.0
        return {**losses, 'loss_level': torch.tensor(level)}


@MODELS.register_module()
class Shrinking(ToyNet):
    """A model whose loss is the distance of its weights from 0."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        super().forward(inputs, data_samples, mode)
        return dict(loss=self.head.weight.square().mean())


class Inflate(Hook):
    """A hook that makes weights large after an iteration."""

    def __init__(self, iteration, value=50):
        self.iteration, self.value = iteration, value

    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 == self.iteration:
            runner.model.head.weight.data.fill_(self.value)


# The median is high after two or three of four updates; three batches are
# tried before the windows that follow.
@pytest.mark.parametrize(
    ('length', 'since', 'judged', 'to'),
    [(1, 40, 46, 36), (2, 38, 50, 32)],
    ids=str,
)
def test_a_divergence_goes_back_behind_its_window(
    tmp_path, length, since, judged, to
):
    """The rollback counts iterations; an accumulation window has several."""
    runner = train(
        tmp_path,
        faults=(),
        model=dict(type='Shrinking'),
        optim_wrapper=wrapper(
            optimizer='Adam',
            lr=0.05,
            guard=dict(POLICY, divergence=dict(window=4)),
            accumulative_counts=length,
        ),
        rollback=dict(num_kept=10, lr_factor=0.1),
        custom=[Inflate(since)],
        max_iters=60,
    )
    (row,) = read_rows(runner, 'rollback')
    (update,) = read_rows(runner)
    assert (update['cause'], update['action']) == ('divergence', 'rollback')
    assert (row['iter'], row['to']) == (judged, to)
    assert (row['lr_factor'], runner.iter) == (0.1, 60)
    assert_equal(
        runner.remembered.states[judged], runner.remembered.states[to]
    )
    assert runner.message_hub.get_scalar('train/loss').current() < 0.1


def test_losses_that_come_down_by_themselves_are_left_alone(tmp_path):
    runner = train(
        tmp_path,
        faults=(),
        model=dict(type='Shrinking'),
        optim_wrapper=wrapper(
            optimizer='Adam',
            lr=0.02,
            guard=dict(POLICY, divergence=dict(window=16)),
        ),
        rollback=dict(num_kept=20, lr_factor=0.1),
        custom=[Inflate(60, value=0.4)],
        max_iters=90,
    )
    assert read_rows(runner, 'rollback') == read_rows(runner) == []
    assert runner.message_hub.get_scalar('train/loss').current() < 0.01


@pytest.mark.parametrize('length', [1, 2])
def test_a_loss_that_has_risen_by_itself_is_left_alone(tmp_path, length):
    """The earlier weights have the high loss too; their trial has no trace."""
    model = dict(type='Forgetful', since=40)
    guarded = train(
        tmp_path / 'a',
        faults=(),
        model=model,
        guard=dict(divergence=dict(window=4)),
        wrapper=dict(accumulative_counts=length),
        rollback=dict(num_kept=10, lr_factor=0.1),
        max_iters=60,
    )
    assert read_rows(guarded, 'rollback') == read_rows(guarded) == []
    assert guarded.model.num_seen == 60
    plain = make_runner(
        tmp_path / 'b',
        wrapper(lr=0.01, optimizer='AdamW', accumulative_counts=length),
        default_hooks=guard_hooks(),
        model=model,
        max_iters=60,
    )
    plain.train()
    assert_equal(everything(guarded), everything(plain))


def checkpoints(interval):
    return dict(type='CheckpointHook', by_epoch=False, interval=interval)


class ForgetStates(Hook):
    """A hook that leaves a rollback nothing but files."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for hook in runner.hooks:
            if type(hook).__name__ == 'RollbackHook':
                hook._states._kept = []


@pytest.mark.parametrize('is_guarded', [True, False])
def test_no_file_of_another_run_is_restored(tmp_path, is_guarded):
    """Yesterday's run used the same work dir, and the same seed."""
    kind = 'NanGuardOptimWrapper' if is_guarded else 'OptimWrapper'
    yesterday = make_runner(
        tmp_path,
        wrapper(kind, lr=0.01, optimizer='AdamW'),
        default_hooks=dict(
            checkpoint=checkpoints(8), **(guard_hooks() if is_guarded else {})
        ),
        max_iters=8,
    )
    yesterday.train()
    with pytest.raises(RollbackUnavailable, match='No state is kept'):
        train(tmp_path, faults=(10, 11, 12), custom=[ForgetStates()])


@pytest.mark.parametrize('is_guarded', [True, False])
def test_files_of_this_run_are_restored_after_a_resume(tmp_path, is_guarded):
    """The guard may join a run that was not guarded from the start."""
    kind = 'NanGuardOptimWrapper' if is_guarded else 'OptimWrapper'
    hooks = dict(checkpoint=checkpoints(4))
    if is_guarded:
        hooks.update(guard_hooks())
    first = make_runner(
        tmp_path,
        wrapper(kind, lr=0.01, optimizer='AdamW'),
        default_hooks=hooks,
        max_iters=8,
    )
    first.train()
    runner = train(
        tmp_path, faults=(10, 11, 12), custom=[ForgetStates()], resume=True
    )
    (row,) = read_rows(runner, 'rollback')
    assert (row['iter'], row['to']) == (12, 8)
    assert row['path'].endswith('iter_8.pth')


def test_a_file_of_another_model_is_passed_over(tmp_path):
    """The config was changed between two attempts of one run."""

    class Widen(ForgetStates):
        priority = 'LOWEST'

        def after_train_iter(self, runner, **kwargs):
            if runner.iter + 1 == 9:
                path = tmp_path / 'iter_8.pth'
                saved = load_plain(path)
                saved['state_dict']['head.weight'] = torch.zeros(7, 4)
                torch.save(saved, path)

    runner = train(
        tmp_path,
        faults=(10, 11, 12),
        hooks=dict(checkpoint=checkpoints(4)),
        custom=[Widen()],
        max_iters=12,
    )
    (row,) = read_rows(runner, 'rollback')
    assert (row['to'], row['path'][-10:]) == (4, 'iter_4.pth')
    states = runner.remembered.states
    assert_equal(states[12], states[4])


def test_a_restore_that_fails_changes_nothing(tmp_path, monkeypatch):
    remembered = []

    def fail(self, optimizer):
        optimizer.param_groups[0]['weight_decay'] = 7.0
        if not remembered:
            remembered.append(1)
            raise RuntimeError('out of memory')

    from mmnanguard.numerics.checkpoints import optimizer_copy

    original = optimizer_copy.OptimizerCopy.restore

    def restore(self, optimizer):
        if remembered:
            original(self, optimizer)
        fail(self, optimizer)

    monkeypatch.setattr(optimizer_copy.OptimizerCopy, 'restore', restore)
    seen = {}

    class Look(Hook):
        priority = 'LOWEST'

        def after_guard_row(self, runner, row):
            seen.update(clone(everything(runner)))

    with pytest.raises(RollbackUnavailable, match='cannot be restored') as e:
        train(tmp_path, faults=(10, 11, 12), custom=[Look()])
    assert e.value.event.iter == 12
    # the state after iteration 9, which the three bad updates have not changed
    plain = train(tmp_path / 'plain', faults=(), max_iters=9)
    assert_equal(seen, plain.remembered.states[9])


def test_the_first_steps_after_a_rollback_are_checked(tmp_path):
    """The steps before it are forgotten, and blamed for nothing."""
    runner = train(tmp_path, [], custom=[SpoilWeights([6])], max_iters=8)
    guard = runner.optim_wrapper.guard
    (rollback,) = read_rows(runner, 'rollback')
    assert guard.num_steps == 8 - rollback['iter']


class BadShard(Hook):
    """Make all inputs of some iterations NaN, whatever the weights are."""

    def __init__(self, iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            data_batch['inputs'] = [
                torch.full_like(image, math.nan, dtype=torch.float32)
                for image in data_batch['inputs']
            ]


def test_no_rollback_for_batches_that_fail_with_any_weights(tmp_path):
    """The run keeps what it has learnt before a bad shard."""
    shard = BadShard(range(7, 11))
    runner = train(tmp_path, (), custom=[shard])
    states = runner.remembered.states
    log = read_log(runner)
    assert 'not finite with earlier weights either' in log
    assert 'went back' not in log
    # Nor is it promised before it is decided.
    assert 'training goes back' not in log
    assert runner.optim_wrapper.guard.state.num_rollbacks == 1
    for name, tensor in states[6].items():
        assert torch.equal(tensor, states[10][name]), name
    assert_finite(runner)


def test_batches_that_fail_for_ever_halt_the_run(tmp_path):
    with pytest.raises(RollbackUnavailable, match='nothing was committed'):
        train(tmp_path, (), custom=[BadShard(range(7, 30))], max_iters=30)


def read_log(runner):
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()
