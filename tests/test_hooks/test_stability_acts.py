"""The monitor acts before an update goes bad, if it is allowed to."""

import copy
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from ranks import launch
from torch import nn
from toys import assert_same, guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.hooks._shared.patches import Patches
from mmnanguard.hooks.replay.fp32_modules_hook import find_targets, put_in_fp32
from mmnanguard.numerics.stability.failsafe import Failsafe
from mmnanguard.numerics.stability.half_probe import HalfProbe
from mmnanguard.numerics.stability.window_probe import WindowProbe
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

needs_float16 = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='PyTorch before 2.3 has no float16 on a CPU'
)
FP32_HOOK = dict(type='mmnanguard.Fp32ModulesHook')


@MODELS.register_module()
class RewardedNet(BaseModel):
    """A residual net whose loss rewards large outputs."""

    def __init__(self, reward=1.0, bad=None):
        super().__init__()
        self.bad = bad  # the number of the forward pass that makes NaN
        self.stem = nn.Linear(3, 8)
        self.block = Residual()
        self.head = Head()
        self.reward = reward
        self.dtypes = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).mean((2, 3))
        if len(self.dtypes) + 1 == self.bad:
            x = x * float('nan')
        x = self.block(torch.relu(self.stem(x)))
        out = self.head.predict(x)
        self.dtypes.append(out.dtype)
        size = out.float().abs().mean() + 1
        return dict(loss=-self.reward * size.log() + (1 - self.reward) * size)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        # In place, in the dtype of the linear layer.
        out = self.fc(x)
        out += x
        return out


class Head(nn.Module):
    """A head with a method of its own, as those of mm have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8, 2), 0.1))

    def predict(self, x):
        return x @ self.weight


def run(work_dir, keys, monitor, max_iters, **changes):
    hooks = {**guard_hooks(), **changes.pop('hooks', {})}
    if monitor is not None:
        hooks['stability'] = dict(
            type='mmnanguard.StabilityMonitorHook', **monitor
        )
    runner = make_runner(
        work_dir,
        wrapper(**keys),
        default_hooks=hooks,
        max_iters=max_iters,
        **changes,
    )
    runner.train()
    return runner


def rows_of(runner, kind):
    path = Path(runner.log_dir) / 'nanguard' / 'events.jsonl'
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row['kind'] == kind]


def text_of(runner):
    return '\n'.join(p.read_text() for p in Path(runner.log_dir).glob('*.log'))


# Modules in float32


def grow(
    work_dir,
    act=('fp32',),
    max_iters=45,
    reward=1.0,
    loss_scale=1.0,
    bad=None,
    **changes,
):
    """Train a net in float16 that would overflow within the iterations."""
    keys = dict(
        type_='NanGuardAmpOptimWrapper',
        optimizer='Adam',
        lr=1.0,
        dtype='float16',
        loss_scale=loss_scale,
    )
    hooks = dict(
        fp32=FP32_HOOK,
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=20),
    )
    return run(
        work_dir,
        keys,
        dict(interval=10, act=act),
        max_iters,
        model=dict(type='RewardedNet', reward=reward, bad=bad),
        hooks=hooks,
        **changes,
    )


@needs_float16
def test_modules_run_in_float32_before_they_overflow(tmp_path):
    assert rows_of(grow(tmp_path / 'plain', act=()), 'update')
    runner = grow(tmp_path / 'acting')
    assert rows_of(runner, 'update') == []
    remedies = rows_of(runner, 'remedy')
    alerts = {row['id']: row for row in rows_of(runner, 'alert')}
    # The method that multiplies, and not the module's forward.
    assert 'head.predict' in [row['module'] for row in remedies]
    for remedy in remedies:
        alert = alerts[remedy['id']]
        assert alert['rule'] == 'headroom'
        assert alert['acted'] == 'fp32'
    assert runner.model.dtypes[0] is torch.float16
    assert runner.model.dtypes[-1] is torch.float32


class Sum(nn.Module):
    """A residual block that adds to its input, or to its branch in place."""

    def __init__(self, is_in_place):
        super().__init__()
        self.branch = linear(1e-4)
        self.is_in_place = is_in_place

    def forward(self, x):
        out = self.branch(x)
        if self.is_in_place:
            out += x
            return out
        return x + out


def linear(weight):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


@needs_float16
@pytest.mark.parametrize(
    ('modules', 'targets'),
    [
        # What makes a large number, and what autocast would cast it for.
        ([linear(1e4), nn.ReLU(), linear(1e-4)], ['0', '2']),
        # A sum is in float32 as its first part is, but not if it is in place.
        ([linear(1e4), Sum(False)], ['0', '1.branch']),
        ([linear(1e4), Sum(True)], ['0', '1', '1.branch']),
        ([linear(1e2), linear(1e-4)], []),
    ],
)
def test_modules_that_have_to_go_together(modules, targets):
    net = nn.Sequential(*modules)
    parts = dict(net.named_modules())
    del parts['']
    probe = HalfProbe(parts, 4096.0, Failsafe())
    with probe, torch.autocast('cpu', torch.float16):
        net(torch.ones(1, 1)).sum().backward()
    assert sorted(probe.take()) == targets
    patches = Patches()
    for name in targets:
        for target in find_targets(net, name):
            put_in_fp32(patches, target, 'cpu')
    probe = HalfProbe(parts, 4096.0, Failsafe())
    with probe, torch.autocast('cpu', torch.float16):
        net(torch.ones(1, 1))
    assert probe.take() == {}


@needs_float16
def test_the_measurement_changes_no_number():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)
    )
    results = []
    probe = HalfProbe(dict(net.named_modules()), 1e-3, Failsafe())
    for mode in (nullcontext(), probe):
        copied = copy.deepcopy(net)
        torch.manual_seed(1)
        with mode, torch.autocast('cpu', torch.float16):
            copied(torch.ones(3, 4)).square().sum().backward()
        grads = [param.grad for param in copied.parameters()]
        results.append([*grads, *copied.buffers(), torch.get_rng_state()])
    assert all(map(torch.equal, *results))


@needs_float16
@pytest.mark.parametrize(
    ('entry', 'targets'), [(float('nan'), []), (1e6, ['0', '2']), (1.0, [])]
)
def test_a_nan_of_the_batch_is_no_overflow(entry, targets):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    parts = dict(net.named_modules())
    del parts['']
    inputs = torch.ones(3, 4)
    inputs[0] = entry
    probe = HalfProbe(parts, 4096.0, Failsafe())
    with probe, torch.autocast('cpu', torch.float16):
        net(inputs)
    assert sorted(probe.take()) == targets


@needs_float16
def test_a_bad_batch_after_an_alert_only_delays_the_act(tmp_path):
    alert, *_ = rows_of(grow(tmp_path / 'sound'), 'alert')
    runner = grow(tmp_path / 'spoilt', bad=alert['iter'] + 1)
    assert [row['iter'] for row in rows_of(runner, 'update')] == [
        alert['iter'] + 1
    ]
    # The window after the bad one is measured.
    assert runner.model.dtypes.index(torch.float32) == alert['iter'] + 2


@needs_float16
def test_a_resumed_run_goes_on_with_its_modules(tmp_path):
    whole = grow(tmp_path / 'whole')
    grow(tmp_path / 'parts', max_iters=20)
    resumed = grow(tmp_path / 'parts', resume=True)
    assert rows_of(whole, 'remedy')
    assert resumed.model.dtypes[-1] is torch.float32
    assert_same(whole, resumed)


@needs_float16
def test_a_run_without_an_alert_is_not_changed(tmp_path):
    acting = grow(tmp_path / 'acting', reward=0.0, max_iters=15)
    plain = grow(tmp_path / 'plain', act=(), reward=0.0, max_iters=15)
    assert rows_of(acting, 'remedy') == []
    assert_same(acting, plain)


def test_float32_needs_its_hook(tmp_path):
    with pytest.raises(GuardConfigError, match='Fp32ModulesHook') as error:
        run(tmp_path, dict(), dict(act=['fp32']), 1)
    assert 'default_hooks=dict(fp32=' in str(error.value)


# The loss scale


def shrink(work_dir, loss_scale, act=('scale',), **changes):
    """Train with a loss scale at which gradients vanish."""
    keys = dict(
        type_='NanGuardAmpOptimWrapper',
        lr=1e-3,
        dtype='float16',
        loss_scale=loss_scale,
    )
    changes.setdefault('max_iters', 6)
    hooks = dict(
        fp32=FP32_HOOK,
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
    )
    return run(
        work_dir, keys, dict(interval=1, act=act), hooks=hooks, **changes
    )


@needs_float16
@pytest.mark.parametrize(
    ('loss_scale', 'highest'),
    [
        (2.0**-16, 2.0**30),
        (dict(init_scale=2.0**-16), 2.0**30),
        (dict(init_scale=2.0**-16, max_scale=2.0**-14), 2.0**-14),
    ],
)
def test_the_loss_scale_rises_to_what_fits(tmp_path, loss_scale, highest):
    runner = shrink(tmp_path, loss_scale)
    (remedy,) = rows_of(runner, 'remedy')
    scale = runner.optim_wrapper.guard.scaler.get_scale()
    assert remedy['value'] == scale
    if isinstance(loss_scale, float):
        # The scale to come back to after an overflow.
        assert runner.optim_wrapper.guard.scaler.home == scale
    assert 2.0**-15 < scale <= highest
    (alert,) = rows_of(runner, 'alert')
    assert remedy['id'] == alert['id']
    assert alert['acted'] == 'scale'
    assert rows_of(runner, 'update') == []


@needs_float16
def test_a_raised_scale_survives_a_resume(tmp_path):
    first = shrink(tmp_path, 2.0**-16, max_iters=3)
    resumed = shrink(tmp_path, 2.0**-16, resume=True)
    scale = first.optim_wrapper.guard.scaler.get_scale()
    assert scale > 1
    assert resumed.optim_wrapper.guard.scaler.get_scale() == scale


@needs_float16
def test_the_loss_scale_stays_if_acting_is_not_allowed(tmp_path):
    runner = shrink(tmp_path, 2.0**-16, act=())
    assert rows_of(runner, 'alert')
    assert rows_of(runner, 'remedy') == []
    assert runner.optim_wrapper.guard.scaler.get_scale() == 2.0**-16


@needs_float16
@pytest.mark.parametrize('act', ['fp32', 'scale'])
def test_the_loss_scale_falls_before_gradients_overflow(tmp_path, act):
    options = dict(loss_scale='dynamic', reward=0.0, max_iters=25)
    plain = grow(tmp_path / 'plain', act=(), **options)
    assert rows_of(plain, 'update')
    acting = grow(tmp_path / 'acting', act=[act], **options)
    assert rows_of(acting, 'update') == []
    line = 'the loss scale goes from 65536 to '
    assert line in text_of(acting)
    assert line not in text_of(plain)


@needs_float16
def test_modules_with_large_gradients_run_in_float32_at_the_lowest_scale(
    tmp_path,
):
    scale = dict(init_scale=2.0**13, min_scale=2.0**13)
    options = dict(loss_scale=scale, reward=0.0, max_iters=25)
    for act, is_relieved in (('scale', False), ('fp32', True)):
        runner = grow(tmp_path / act, [act], **options)
        modules = {row['module'] for row in rows_of(runner, 'remedy')}
        assert ('block.fc' in modules) is is_relieved
        assert runner.optim_wrapper.guard.scaler.get_scale() == 2.0**13


@MODELS.register_module()
class SteepStem(RewardedNet):
    """A net whose stem has gradients far above those of the rest."""

    def __init__(self):
        super().__init__(reward=0.0)
        self.stem.weight.register_hook(lambda grad: grad * math.inf)


@needs_float16
def test_no_module_runs_in_float32_as_long_as_the_scale_can_fall(tmp_path):
    runner = shrink(
        tmp_path,
        dict(init_scale=2.0**18),
        act=['fp32'],
        model=dict(type='SteepStem'),
        max_iters=2,
    )
    assert rows_of(runner, 'update')
    assert rows_of(runner, 'remedy') == []


class Pair(BaseModel):
    """Two parts, each of which has its optimizer and its loss scale."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def train_step(self, data, optim_wrapper):
        x = torch.stack(list(data['inputs'])).float().mean((2, 3))
        losses = {}
        for name, part_wrapper in optim_wrapper.items():
            with part_wrapper.optim_context(self):
                loss = getattr(self, name)(x).float().square().mean()
            part_wrapper.update_params(loss)
            losses[name] = loss.detach()
        return losses

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.first(inputs)


@needs_float16
@pytest.mark.parametrize('scales', [(1.0, 2.0**14), (2.0**14, 2.0**14)])
def test_a_gradient_lowers_no_scale_of_another_optimizer(tmp_path, scales):
    model = Pair()
    wrappers = {}
    for name, scale in zip(('first', 'second'), scales):
        config = wrapper(
            'NanGuardAmpOptimWrapper',
            dtype='float16',
            loss_scale=dict(init_scale=scale),
        )
        params = getattr(model, name).parameters()
        config['optimizer'] = torch.optim.SGD(params, lr=1e-3)
        wrappers[name] = OPTIM_WRAPPERS.build(config)
    monitor = dict(type='mmnanguard.StabilityMonitorHook', act=['scale'])
    make_runner(
        tmp_path,
        OptimWrapperDict(**wrappers),
        model=model,
        default_hooks={**guard_hooks(), 'stability': monitor},
        max_iters=2,
    ).train()
    after = [w.guard.scaler.get_scale() for w in wrappers.values()]
    if scales[0] < scales[1]:
        # Gradients are not known by the scale that they have.
        assert after == list(scales)
    else:
        assert after[0] == after[1] < scales[0]


@needs_float16
def test_gradients_of_parameters_are_measured():
    """A gradient of a parameter is a sum over the batch."""
    net = nn.Sequential(nn.Linear(4, 2))
    probe = WindowProbe({'0': net[0]}, {}, set(), 1.0, net)
    with torch.autocast('cpu', torch.float16):
        net(torch.full((64, 4), 3.0)).sum().backward()
    sample = probe.sample(1, 0.1, False)
    assert sample.grads == {'0': net[0].weight.grad.max().item()}
    assert sample.scaled_grad > 64


@needs_float16
def test_samples_are_dense_while_a_module_is_beyond_float16(tmp_path):
    runner = grow(tmp_path, max_iters=300)
    (path,) = Path(runner.log_dir).glob('nanguard/stability.jsonl')
    rows = map(json.loads, path.read_text().splitlines())
    iters = [row['iter'] for row in rows if 'iter' in row]
    # From 50 on, samples are 10 iterations apart.
    assert set(range(290, 301)) <= set(iters)
    assert len(iters) < 200


@pytest.mark.parametrize('act', ['scale', 'lr'])
def test_other_acts_need_a_guarded_wrapper(tmp_path, act):
    with pytest.raises(GuardConfigError, match='NanGuardOptimWrapper'):
        run(tmp_path, dict(type_='OptimWrapper'), dict(act=[act]), 1)


# The learning rate


class Rates(Hook):
    """Record the rate of each group, and the rate that the step uses."""

    def __init__(self):
        self.scheduled, self.used = [], []

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self.note)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.scheduled.append(runner.optim_wrapper.param_groups[0]['lr'])

    def note(self, optimizer, args, kwargs):
        self.used.append(optimizer.param_groups[0]['lr'])

    @property
    def factors(self):
        return [u / s for u, s in zip(self.used, self.scheduled)]


def hurry(work_dir, max_iters=12, monitor=None, num_iters=1, **changes):
    """Train at a rate whose updates are large beside the weights."""
    rates = Rates()
    monitor = {'interval': 1, 'update_ratio': 1e-4, **(monitor or {})}
    monitor.setdefault('act', ('lr',))
    runner = run(
        work_dir,
        dict(
            lr=0.05,
            optimizer_keys=dict(momentum=0.0),
            accumulative_counts=num_iters,
        ),
        monitor,
        max_iters,
        hooks=dict(
            rates=rates,
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=5)
        ],
        **changes,
    )
    return runner, rates


def test_rates_are_halved_and_stay_so(tmp_path):
    runner, rates = hurry(tmp_path, monitor=dict(max_actions=2))
    # Two samples in a row for the alert, and three more for the second act.
    assert rates.factors == pytest.approx([1, 1, 0.5, 0.5, 0.5] + [0.25] * 7)
    assert rates.scheduled[-1] == pytest.approx(0.05)
    first, second = rows_of(runner, 'remedy')
    assert (first['remedy'], second['remedy']) == ('lr', 'lr')
    assert (first['value'], second['value']) == (0.5, 0.25)
    (alert,) = rows_of(runner, 'alert')
    assert first['id'] == second['id'] == alert['id']
    assert 'factor=0.25' in second['config']


def test_rates_stay_if_acting_is_not_allowed(tmp_path):
    runner, rates = hurry(tmp_path, max_iters=6, monitor=dict(act=()))
    assert rows_of(runner, 'alert')
    assert set(rates.factors) == {1.0}


def test_lower_rates_survive_a_resume(tmp_path):
    whole, _ = hurry(tmp_path / 'whole')
    hurry(tmp_path / 'parts', max_iters=6)
    resumed, rates = hurry(tmp_path / 'parts', resume=True)
    assert rates.factors[0] == 0.25
    assert_same(whole, resumed)


@pytest.mark.filterwarnings('ignore:Detected call of')
def test_a_sample_that_waits_for_a_window_survives_a_resume(tmp_path):
    # The sample of iteration 10 begins with the window of 12.
    options = dict(num_iters=4, monitor=dict(interval=50))
    whole, _ = hurry(tmp_path / 'whole', 32, **options)
    hurry(tmp_path / 'parts', 12, **options)
    resumed, _ = hurry(tmp_path / 'parts', 32, resume=True, **options)
    assert rows_of(whole, 'remedy')
    assert_same(whole, resumed)


def test_no_recovery_raises_lower_rates(tmp_path):
    runner, _ = hurry(tmp_path, monitor=dict(max_actions=1), max_iters=4)
    state = runner.optim_wrapper.guard.state
    assert state.lr_factor == state.lr_ceiling == 0.5
    # As a rollback or guard.lr_backoff lets rates return.
    lowered = state.rolled_back(state, 0.1, 0.3)
    factor, lr_return = lowered.recovered_lr()
    assert factor == pytest.approx(0.4)
    again = lowered.rolled_back(state, factor, lr_return)
    assert again.recovered_lr() == (0.5, 0.0)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(act='fp32'),
        dict(act=['bf16']),
        dict(act={'fp32': 1}),
        dict(act=None),
        dict(act=[['fp32']]),
        dict(max_actions=0),
    ],
)
def test_arguments_that_are_not_allowed(tmp_path, arguments):
    with pytest.raises(GuardConfigError, match=next(iter(arguments))):
        run(tmp_path, dict(), arguments, 1)


# States to go back to


def test_an_alert_keeps_a_state(tmp_path):
    kept = {}
    for num_kept in (1, 2):
        runner, _ = hurry(
            tmp_path / str(num_kept),
            max_iters=6,
            monitor=dict(act=()),
            custom_hooks=[
                dict(type='mmnanguard.RollbackHook', num_kept=num_kept)
            ],
        )
        (alert,) = rows_of(runner, 'alert')
        (hook,) = [h for h in runner.hooks if hasattr(h, '_states')]
        kept[num_kept] = [state.iter for state in hook._states._kept]
    assert kept == {1: [0], 2: [0, alert['iter']]}


def test_words_of_the_remedies():
    assert 'loss scale is 4096' in RemedyRow('', 'scale', value=4096).line()
    assert 'times 0.5' in RemedyRow('', 'lr', value=0.5).line()
    assert "remedy 'ice'" in RemedyRow('', 'ice').sentence()
    # A row of 0.1.
    old = dict(id='a-1', remedy='fp32', module='head', config='')
    assert RemedyRow.from_row(old).value is None


@needs_float16
def test_all_ranks_act_alike(tmp_path):
    launch('stability_acts_job.py', tmp_path)
    first, second = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    assert first == second
    for rows in first.values():
        # The outputs of rank 1 alone are large.
        assert {row['remedy'] for row in rows} == {'fp32', 'lr'}
