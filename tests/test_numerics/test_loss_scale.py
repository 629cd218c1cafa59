"""The scale, driven by real verdicts and beside PyTorch's own scaler."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard.core import (
    Action,
    Cause,
    GuardConfigError,
    GuardPolicy,
    GuardState,
    Observation,
    ScaleMove,
    ScaleReading,
    Verdict,
    decide,
)
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER, GradScaler

NAN, INF = math.nan, math.inf
LOWEST = 2.0**-16  # the default of min_scale
NO_LIMITS = GuardPolicy(max_consecutive_skips=None, max_skip_rate=None)
BAD_LOSS = Verdict(Action.SKIP, Cause.LOSS_NONFINITE, blames_scale=False)
# Without one, a GPU's scaler is driven on the host.
DEVICE = 'cpu' if HAS_CPU_SCALER else 'cuda'
needs_cpu_scaler = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='a scaler for a CPU needs torch>=2.3'
)


@pytest.fixture(autouse=True)
def a_gpu_may_be_there(monkeypatch):
    if not HAS_CPU_SCALER:
        pretend_to_have_cuda(monkeypatch, True)


def pretend_to_have_cuda(monkeypatch, is_there):
    amp = torch.cuda.amp
    monkeypatch.setattr(
        amp.common if HAS_CPU_SCALER else amp.grad_scaler,
        'amp_definitely_not_available',
        lambda: not is_there,
    )


def build(loss_scale='dynamic'):
    return GuardedGradScaler.from_config(loss_scale, DEVICE)


def judge(scaler, is_finite):
    """Move by the verdict on one update; return the scale after it."""
    seen = Observation(
        loss=1.0,
        grad_norm=1.0 if is_finite else NAN,
        grad_is_finite=is_finite,
        scale=scaler.read(),
    )
    before, after = scaler.move(decide(seen, GuardState(), NO_LIMITS))
    assert before == seen.scale.value
    return after


def play(scaler, script):
    """Return the scale after each update: 'o' is a commit, 'x' an overflow."""
    return [judge(scaler, mark == 'o') for mark in script]


def on_device(scaler):
    if HAS_CPU_SCALER:
        return scaler.scale(torch.ones(())).item()
    if scaler._scale is None:
        scaler._lazy_init_scale_growth_tracker('cpu')
    return scaler._scale.item()


@pytest.mark.parametrize(
    ('config', 'scale', 'floor', 'ceiling', 'interval', 'hysteresis'),
    [
        ('dynamic', 65536.0, LOWEST, 2.0**126, 2000, 1),
        (512, 512.0, 1.0, 512.0, 2000, 1),
        (512.0, 512.0, 1.0, 512.0, 2000, 1),
        # A scale below 1 is its own floor.
        (0.25, 0.25, 0.25, 0.25, 2000, 1),
        ({}, 65536.0, LOWEST, 2.0**126, 2000, 1),
        (dict(init_scale=8), 8.0, LOWEST, 2.0**126, 2000, 1),
        (
            dict(
                init_scale=32.0,
                growth_factor=4.0,
                backoff_factor=0.25,
                growth_interval=7,
                hysteresis=2,
                min_scale=2,
                max_scale=64,
                enabled=True,
            ),
            32.0,
            2.0,
            64.0,
            7,
            2,
        ),
        # A start above the default ceiling raises it.
        (dict(init_scale=2.0**127), 2.0**127, LOWEST, 2.0**127, 2000, 1),
        # Both bounds are inclusive.
        (
            dict(init_scale=4.0, min_scale=4.0, max_scale=4.0),
            4.0,
            4.0,
            4.0,
            2000,
            1,
        ),
    ],
)
def test_forms(config, scale, floor, ceiling, interval, hysteresis):
    scaler = build(config)
    assert isinstance(scaler, GradScaler)
    assert scaler.get_scale() == scale
    assert type(scaler.get_scale()) is float
    assert on_device(scaler) == scale
    assert (scaler.min_scale, scaler.max_scale) == (floor, ceiling)
    assert scaler.get_growth_interval() == interval
    assert scaler.hysteresis == hysteresis


def test_factors_reach_pytorch():
    scaler = build(dict(growth_factor=4.0, backoff_factor=0.25))
    assert scaler.get_growth_factor() == 4.0
    assert scaler.get_backoff_factor() == 0.25


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ('static', ["'static'", 'a number', "'dynamic'", 'min_scale']),
        (None, ['None', "'dynamic'"]),
        (True, ['True', "'dynamic'"]),
        ([512], ['[512]', "'dynamic'"]),
        (0, ['0', 'above 0']),
        (-4.0, ['-4.0', 'above 0']),
        (NAN, ['nan', 'finite']),
        (INF, ['inf', 'finite']),
        (dict(init_scal=4), ["'init_scal'", "'init_scale'", 'hysteresis']),
        (dict(device='cpu'), ["'device'", 'Allowed keys']),
        (dict(growth_factor=1.0), ['growth_factor', '1.0', 'above 1']),
        (dict(growth_factor=NAN), ['growth_factor', 'nan', 'above 1']),
        (dict(backoff_factor=0), ['backoff_factor', '0', 'in (0, 1)']),
        (dict(backoff_factor=1.0), ['backoff_factor', '1.0', 'in (0, 1)']),
        (dict(growth_interval=0), ['growth_interval', '0', 'at least 1']),
        (dict(growth_interval=2.0), ['growth_interval', '2.0', 'integer']),
        (dict(hysteresis=0), ['hysteresis', '0', 'at least 1']),
        (dict(hysteresis='2'), ['hysteresis', "'2'", 'integer']),
        (dict(min_scale=0.0), ['min_scale', '0.0', 'above 0']),
        (dict(init_scale=1e-6), ['init_scale', '1e-06', 'min_scale=1.5']),
        (
            dict(init_scale=9.0, max_scale=8.0),
            ['init_scale', '9.0', 'max_scale=8.0'],
        ),
        (dict(init_scale=NAN), ['init_scale', 'nan', 'finite']),
        (dict(init_scale=INF), ['init_scale', 'inf', 'finite']),
        # On the device the scale is a float32.
        (dict(init_scale=1e39), ['init_scale', '1e+39']),
        # Values that are no numbers.
        (dict(init_scale=True), ['init_scale', 'True']),
        (dict(growth_interval=True), ['growth_interval', 'True', 'integer']),
        (dict(init_scale='big'), ['init_scale', "'big'"]),
        (dict(init_scale=None), ['init_scale', 'None']),
        (dict(growth_factor='2'), ['growth_factor', "'2'"]),
        (dict(backoff_factor=None), ['backoff_factor', 'None']),
        (dict(min_scale='1'), ['min_scale', "'1'"]),
        (dict(max_scale='8'), ['max_scale', "'8'"]),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(config, words):
    with pytest.raises(GuardConfigError) as caught:
        build(config)
    for word in ['optim_wrapper.loss_scale', *words]:
        assert word in str(caught.value)


def test_a_config_dict_stays_as_it_was():
    config = dict(init_scale=8.0, min_scale=2.0)
    build(config)
    assert config == dict(init_scale=8.0, min_scale=2.0)


def test_a_number_is_start_and_ceiling_but_can_be_lowered():
    scaler = build(512)
    scaler.set_growth_interval(3)
    assert play(scaler, 'oooo') == [512, 512, 512, 512]
    assert play(scaler, 'xx') == [256, 128]
    assert play(scaler, 'oooooo') == [128, 128, 256, 256, 256, 512]
    assert play(scaler, 'oooo') == [512, 512, 512, 512]


def test_an_overflow_starts_the_growth_count_anew():
    scaler = build(dict(init_scale=8.0, growth_interval=3))
    assert play(scaler, 'ooxooo') == [8, 8, 4, 4, 4, 8]


def test_floor_and_ceiling_are_reached_and_not_passed():
    scaler = build(
        dict(init_scale=4.0, min_scale=3.0, max_scale=9.0, growth_interval=1)
    )
    assert play(scaler, 'xxooo') == [3, 3, 6, 9, 9]


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        # value, floor, lower_is_due, growth_is_due
        (dict(init_scale=4.0), ScaleReading(4.0, LOWEST, True, False)),
        (dict(init_scale=1.0), ScaleReading(1.0, LOWEST, True, False)),
        (dict(init_scale=LOWEST), ScaleReading(LOWEST, LOWEST, False, False)),
        (
            dict(init_scale=4.0, min_scale=2.0, growth_interval=1),
            ScaleReading(4.0, 2.0, True, True),
        ),
        (
            dict(init_scale=4.0, max_scale=4.0, growth_interval=1),
            ScaleReading(4.0, LOWEST, True, False),
        ),
        (
            dict(init_scale=4.0, hysteresis=2),
            ScaleReading(4.0, LOWEST, False, False),
        ),
        (dict(init_scale=4.0, enabled=False), ScaleReading()),
    ],
)
def test_reading(config, expected):
    assert build(config).read() == expected


@pytest.mark.parametrize(
    ('script', 'scales'),
    [
        ('xx', [8, 8]),
        ('xxx', [8, 8, 4]),
        ('xxoxx', [8, 8, 8, 8, 8]),  # a commit between them
        ('xxxxx', [8, 8, 4, 4, 4]),  # lowering starts anew
        ('xxxxxx', [8, 8, 4, 4, 4, 2]),
    ],
)
def test_hysteresis_is_consecutive(script, scales):
    scaler = build(dict(init_scale=8.0, hysteresis=3))
    assert play(scaler, script) == scales


def test_a_skip_that_is_no_overflow_is_not_counted():
    """The skip counts neither towards growth nor towards lowering, and it
    resets neither.
    """
    scaler = build(dict(init_scale=8.0, growth_interval=2, hysteresis=2))
    play(scaler, 'o')
    assert scaler.move(BAD_LOSS) == (8, 8)
    assert scaler.state_dict()['_growth_tracker'] == 1
    assert play(scaler, 'o') == [16]
    play(scaler, 'x')
    assert scaler.move(BAD_LOSS) == (16, 16)
    assert play(scaler, 'x') == [8]


def test_move_gives_the_scale_before_and_after():
    scaler = build(8)
    lower = Verdict(Action.SKIP, Cause.GRAD_NONFINITE, ScaleMove.LOWER)
    assert scaler.move(lower) == (8.0, 4.0)


# Beside PyTorch's scaler


class Plain:
    """PyTorch's scaler with a tiny optimizer."""

    def __init__(self, **keys):
        self.scaler = torch.amp.GradScaler('cpu', **keys)
        self.param = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.param], lr=0.1)

    def update(self, is_finite):
        self.optimizer.zero_grad()
        loss = self.param.sum() * (1.0 if is_finite else INF)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()


@needs_cpu_scaler
@pytest.mark.parametrize(
    ('keys', 'num_updates', 'share'),
    [
        ({}, 4500, 0.0002),
        (dict(growth_interval=3), 500, 0.2),
        (dict(growth_interval=2, growth_factor=4.0), 200, 0.4),
    ],
)
def test_dynamic_agrees_with_pytorch_move_for_move(keys, num_updates, share):
    chance = random.Random(0)
    plain = Plain(**keys)
    # PyTorch's has no floor.
    scaler = build(dict(min_scale=2.0**-100, **keys) if keys else 'dynamic')
    seen = set()
    for index in range(num_updates):
        is_finite = index > 5 and chance.random() > share
        plain.update(is_finite)
        seen.add(judge(scaler, is_finite))
        assert scaler.state_dict() == plain.scaler.state_dict()
    assert len(seen) > 5
    assert on_device(scaler) == plain.scaler.get_scale()


@needs_cpu_scaler
def test_state_loads_into_pytorchs_scaler_and_back():
    chance = random.Random(1)
    keys = dict(init_scale=64.0, growth_interval=4)
    script = [chance.random() > 0.2 for _ in range(60)]
    whole = build(keys)
    expected = [judge(whole, is_finite) for is_finite in script]

    scaler, plain, last = build(keys), Plain(**keys), build(keys)
    scales = [judge(scaler, is_finite) for is_finite in script[:21]]
    plain.scaler.load_state_dict(scaler.state_dict())
    for is_finite in script[21:42]:
        plain.update(is_finite)
        scales.append(plain.scaler.get_scale())
    last.load_state_dict(plain.scaler.state_dict())
    scales += [judge(last, is_finite) for is_finite in script[42:]]
    assert scales == expected


@needs_cpu_scaler
def test_pytorch_grows_a_scale_that_was_at_our_ceiling():
    """PyTorch's scaler waits for the count to equal the interval."""
    scaler = build(dict(init_scale=8.0, max_scale=8.0, growth_interval=3))
    play(scaler, 'ooooo')
    plain = Plain(growth_interval=3)
    plain.scaler.load_state_dict(scaler.state_dict())
    for _ in range(3):
        plain.update(True)
    assert plain.scaler.get_scale() == 16.0


DECISIONS = [
    (Action.STEP, Cause.NONE),
    (Action.SKIP, Cause.SCALE_OVERFLOW),
    (Action.SKIP, Cause.LOSS_NONFINITE),
    (Action.HALT, Cause.GRAD_NONFINITE),
]
VERDICTS = [
    Verdict(*decision, move)
    for decision, move in itertools.product(DECISIONS, ScaleMove)
]


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    verdicts=st.lists(st.sampled_from(VERDICTS), max_size=60),
    growth=st.floats(1.01, 1e6),
    backoff=st.floats(1e-6, 0.99),
)
def test_bounds_are_never_passed(verdicts, growth, backoff):
    scaler = build(
        dict(
            init_scale=8.0,
            min_scale=0.5,
            max_scale=4096.0,
            growth_factor=growth,
            backoff_factor=backoff,
        )
    )
    for verdict in verdicts:
        before, after = scaler.move(verdict)
        assert 0.5 <= after <= 4096.0
        assert after == scaler.get_scale() == scaler.read().value
        assert on_device(scaler) == pytest.approx(after, rel=1e-6)
        if verdict.scale_move is ScaleMove.KEEP:
            assert after == before


# Checkpoints


def test_state_is_builtins_and_restored():
    scaler = build(dict(init_scale=8.0, growth_interval=3))
    play(scaler, 'xoo')
    saved = scaler.state_dict()
    assert saved == {
        'scale': 4.0,
        'growth_factor': 2.0,
        'backoff_factor': 0.5,
        'growth_interval': 3,
        '_growth_tracker': 2,
    }
    other = build(dict(init_scale=8.0, growth_interval=3))
    other.load_state_dict(saved)
    assert on_device(other) == other.get_scale() == 4.0
    assert play(other, 'o') == [8.0]


def test_config_sets_the_policy_and_checkpoint_the_scale():
    saved = build(
        dict(init_scale=64.0, growth_interval=9, growth_factor=8.0)
    ).state_dict()
    scaler = build(dict(init_scale=8.0, growth_interval=1, growth_factor=4.0))
    on_device(scaler)  # the tensor exists already
    scaler.load_state_dict(saved)
    assert on_device(scaler) == scaler.get_scale() == 64.0
    assert play(scaler, 'ox') == [256.0, 128.0]
    assert scaler.state_dict()['growth_interval'] == 1


@pytest.mark.parametrize(
    ('saved', 'scale'),
    [
        (0.0, 8.0),
        (-2.0, 8.0),
        (INF, 8.0),
        (NAN, 8.0),
        (1e30, 64.0),
        (0.5, 2.0),
    ],
)
def test_a_useless_scale_is_repaired_with_a_warning(saved, scale):
    scaler = build(dict(init_scale=8.0, min_scale=2.0, max_scale=64.0))
    state = {**scaler.state_dict(), 'scale': saved}
    with pytest.warns(RuntimeWarning) as caught:
        scaler.load_state_dict(state)
    for word in (f'{saved:g}', '[2, 64]', f'with {scale:g}', 'min_scale'):
        assert word in str(caught[0].message)
    assert on_device(scaler) == scaler.get_scale() == scale


@pytest.mark.parametrize('scale', [2.0, 64.0])
def test_a_scale_at_a_bound_is_taken_without_a_warning(scale):
    scaler = build(dict(init_scale=8.0, min_scale=2.0, max_scale=64.0))
    scaler.load_state_dict({**scaler.state_dict(), 'scale': scale})
    assert scaler.get_scale() == scale


def test_an_empty_state_is_ignored():
    scaler = build(dict(init_scale=8.0, growth_interval=2))
    play(scaler, 'xo')
    scaler.load_state_dict(GuardedGradScaler(enabled=False).state_dict())
    assert play(scaler, 'o') == [8.0]


def test_a_disabled_scaler_is_a_scale_of_one_that_never_moves():
    scaler = build(dict(init_scale=8.0, enabled=False))
    loss = torch.ones(())
    assert scaler.scale(loss) is loss
    for verdict in VERDICTS:
        assert scaler.move(verdict) == (1.0, 1.0)
    scaler.load_state_dict(build().state_dict())
    scaler.update()
    assert scaler.get_scale() == 1.0
    assert scaler.state_dict() == {}


def test_a_scaler_that_pytorch_disables_has_a_scale_of_one(monkeypatch):
    pretend_to_have_cuda(monkeypatch, False)
    with pytest.warns(UserWarning, match='CUDA is not available'):
        scaler = GuardedGradScaler('cuda')
    assert not scaler.is_enabled()
    assert scaler.get_scale() == 1.0


# Code that drives the scaler by hand


def test_the_device_tensor_follows_every_move():
    scaler = build(dict(init_scale=8.0, growth_interval=1))
    play(scaler, 'x')  # before the tensor exists
    assert on_device(scaler) == 4.0
    for mark in 'oxxo':
        play(scaler, mark)
        assert on_device(scaler) == scaler.get_scale()


@needs_cpu_scaler
def test_a_users_own_unscale_is_forgotten_by_the_next_update():
    scaler = build(8)
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(param.sum()).backward()
        scaler.unscale_(optimizer)  # PyTorch refuses a second one
        assert param.grad.item() == 1.0
        judge(scaler, True)


@needs_cpu_scaler
def test_an_update_by_hand_is_noticed():
    scaler = build(dict(init_scale=8.0))
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.1)
    scaler.scale(param.sum() * INF).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scaler.read().value == 4.0
    scaler.update(32.0)
    assert scaler.get_scale() == scaler.state_dict()['scale'] == 32.0
    assert play(scaler, 'x') == [16.0]


def test_nothing_but_update_syncs(monkeypatch):
    scaler = build(8)
    on_device(scaler)
    for name in ('item', 'tolist', '__float__', '__int__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, None)
    play(scaler, 'oxo')
    scaler.get_scale()
    scaler.read()
    scaler.load_state_dict(scaler.state_dict())


def test_a_resume_in_the_middle_of_hysteresis():
    first = build(dict(init_scale=64.0, hysteresis=3))
    overflow = Verdict(Action.SKIP, Cause.SCALE_OVERFLOW)
    for _ in range(2):
        first.move(overflow)
    second = build(dict(init_scale=64.0, hysteresis=3))
    second.load_state_dict(first.state_dict())
    assert second.read().lower_is_due
