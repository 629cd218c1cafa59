"""The rules of the monitor, on samples that are written down."""

import json
import math

import pytest

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rules.recent_commits import Commit
from mmnanguard.core.stability.headroom import count_down
from mmnanguard.core.stability.learning import read_losses
from mmnanguard.core.stability.limits import LEAST_SCALED_GRAD, StabilityLimits
from mmnanguard.core.stability.loss_scales import fitting_scale
from mmnanguard.core.stability.margins import margins, on_scale
from mmnanguard.core.stability.monitor import NUM_GRADS, Monitor
from mmnanguard.core.stability.sample import Largest, Operand, Sample
from mmnanguard.core.stability.schedule import is_due

LIMITS = StabilityLimits()
NAN = float('nan')


def feed(samples, limits=LIMITS, monitor=None):
    """Return the monitor after the samples, and all alerts."""
    monitor, alerts = monitor or Monitor(), []
    for sample in samples:
        monitor, new = monitor.after(sample, limits, interval=50)
        alerts += new
    return monitor, alerts


def outputs(value, iteration, dtype='float16', name='head'):
    return Sample(iteration, outputs={name: Largest(value, dtype)})


def doubling(every, first=1.0, last=300, step=10):
    """Return samples of outputs that double every so many iterations."""
    return [outputs(first * 2 ** (i / every), i) for i in range(1, last, step)]


@pytest.mark.parametrize('every', [13.0, 5.0, 40.0])
def test_a_countdown_of_steady_growth(every):
    _, alerts = feed(doubling(every, last=600))
    first = alerts[0]
    assert first.rule == 'headroom'
    assert first.module == 'head'
    assert first.advice == 'fp32'
    assert "modules=['head']" in first.config
    overflow = 1 + every * math.log2(65504)
    predicted = first.iter + first.left
    assert predicted == pytest.approx(overflow, abs=0.1 * overflow)
    assert first.doubles == pytest.approx(every, rel=0.01)
    assert first.iter < overflow
    assert 'double every' in first.line()
    assert 'float16 overflows in about' in first.line()


def test_no_countdown_of_growth_that_levels_off():
    points = [(10, 8.0), (20, 6.0), (30, 5.0), (40, 4.6)]
    assert count_down(points) is None


def test_no_countdown_of_a_rise_in_three_samples():
    assert count_down([(10, 8.0), (20, 7.0), (30, 6.0)]) is None


def test_small_outputs_may_grow_when_learning_begins():
    samples = [outputs(2.0**i, 1 + 5 * i) for i in range(8)]
    assert feed(samples)[1] == []


def test_outputs_that_stay_near_the_limit_are_told_once():
    _, alerts = feed([outputs(5000.0, i) for i in range(1, 200, 10)])
    assert [alert.iter for alert in alerts] == [1]
    assert alerts[0].left is None
    assert 'reach 5e+03 of 65504 in float16' in alerts[0].line()


def test_an_alert_is_told_again_when_it_has_grown_fourfold():
    values = [5000.0, 6000.0, 21000.0, 22000.0]
    _, alerts = feed([outputs(v, i) for i, v in enumerate(values, 1)])
    assert [alert.value for alert in alerts] == [5000.0, 21000.0]


def test_a_module_in_float32_has_room():
    samples = [outputs(1e5, i, dtype='float32') for i in range(1, 100, 10)]
    assert feed(samples)[1] == []


def test_a_module_that_went_to_float32_begins_a_new_trend():
    samples = doubling(10.0, last=130)
    monitor, alerts = feed(samples)
    assert alerts
    value = samples[-1].outputs['head'].value
    later = [
        outputs(2 * value, 131 + 10 * i, dtype='float32') for i in range(6)
    ]
    monitor, alerts = feed(later, monitor=monitor)
    assert [alert.cleared is None for alert in alerts] == [False]


def test_what_has_overflowed_is_no_alert():
    assert feed([outputs(math.inf, i) for i in (1, 11, 21)])[1] == []


def test_bad_batches_are_no_part_of_a_trend():
    samples = doubling(10.0, last=90)
    for place in (-2, -3):
        samples[place] = outputs(math.inf, samples[place].iter)
    assert count_down(feed(samples)[0].trends['head']) is not None


def test_a_bad_batch_has_no_margins():
    bad = Sample(
        1, logits={'attn': math.inf}, outputs=outputs(math.inf, 1).outputs
    )
    assert margins(bad, Monitor()) == ''


def test_the_module_that_overflows_first_is_named():
    samples = []
    for i in range(1, 150, 10):
        slow = Largest(60 * 2 ** (i / 40), 'float16')
        fast = Largest(2 ** (i / 12), 'float16')
        samples.append(Sample(i, outputs={'slow': slow, 'fast': fast}))
    _, alerts = feed(samples)
    assert alerts[0].module == 'fast'


@pytest.mark.parametrize(
    ('ratio', 'is_adaptive', 'told_at'),
    [
        (0.06, False, 11),
        (0.04, False, None),
        (0.03, True, 21),
        (0.019, True, None),
    ],
)
def test_the_limits_of_updates(ratio, is_adaptive, told_at):
    samples = [
        Sample(
            i,
            update_ratio=ratio,
            most_moved=('stem.weight', 2 * ratio),
            is_adaptive=is_adaptive,
            lr=0.5,
        )
        for i in (1, 11, 21, 31)
    ]
    _, alerts = feed(samples)
    assert [alert.iter for alert in alerts] == [told_at] * (
        told_at is not None
    )
    for alert in alerts:
        assert 'lower the learning rate (now 0.5)' in alert.line()
        assert "'stem.weight'" in alert.line()


def with_losses(losses, ratio, is_adaptive=False):
    """Return the alerts of samples each 5 iterations, with the losses."""
    monitor, alerts = Monitor(), []
    for i in range(1, len(losses) + 1, 5):
        sample = Sample(i, update_ratio=ratio, is_adaptive=is_adaptive)
        known = {'default': losses[max(i - 64, 0) : i]}
        monitor, new = monitor.after(sample, LIMITS, 50, known)
        alerts += [alert for alert in new if alert.cleared is None]
    return alerts


FALLING = [4.0 * 0.97**i for i in range(60)]
NOISY = [2.4, *[2.0, 2.4, 2.8] * 3]
FLAT = [2.3 + 0.05 * (i % 3) for i in range(60)]


@pytest.mark.parametrize(
    ('losses', 'ratio', 'is_told'),
    [
        (FALLING, 0.1, False),
        ([loss - 10 for loss in FALLING], 0.1, False),
        # A quarter of the weights in each update is too much in any case.
        (FALLING, 0.25, True),
        (FLAT, 0.1, True),
        # It fell from heights that the updates had driven it to.
        ([2.3, *[900.0 * 0.7**i for i in range(17)], *[2.3] * 42], 0.1, True),
        ([2.3, 2.3, 2.3, *[9.0 * 0.98**i for i in range(57)]], 0.1, True),
        ([NAN] * 60, 0.1, True),
        # A small fall is not seen in so few losses, a rise is.
        (FLAT[:19], 0.1, False),
        ([2.3, 2.3, 2.3, *[2.3 + 0.2 * i for i in range(16)]], 0.1, True),
    ],
)
def test_large_updates_are_judged_by_the_losses(losses, ratio, is_told):
    alerts = with_losses(losses, ratio)
    assert bool(alerts) is is_told


@pytest.mark.parametrize(('rise', 'is_harmed'), [(0.3, False), (1.0, True)])
def test_a_rise_within_the_noise_of_the_losses_is_no_harm(rise, is_harmed):
    losses = [*NOISY, *[loss + rise for loss in NOISY]]
    assert read_losses(losses, 4.0).is_harmed is is_harmed


def test_large_updates_of_a_run_that_has_learnt():
    flat = [1.2 + 0.2 * (i % 2) for i in range(40)]
    assert with_losses([*FALLING[:40], *flat], 0.1) == []
    (alert,) = with_losses([*FALLING[:40], *[1.8 + x for x in flat]], 0.1)
    assert alert.iter > 40
    assert 'and the loss is at 3 (at the start 3.88)' in alert.sentence()


@pytest.mark.parametrize('is_told', [True, False])
def test_updates_that_grow_while_the_loss_still_falls(is_told):
    """A learning rate that rises too far shows in the updates first."""
    monitor, alerts = Monitor(), []
    ratios = [0.01, 0.02, 0.02, 0.03, 0.11, 0.12, 0.14]
    if not is_told:
        ratios[2] = 0.05
    for i, ratio in enumerate(ratios):
        sample = Sample(1 + 5 * i, update_ratio=ratio)
        losses = {'default': FALLING[: 1 + 5 * i]}
        monitor, new = monitor.after(sample, LIMITS, 50, losses)
        alerts += new
    assert bool(alerts) is is_told
    for alert in alerts:
        assert 'limit 5 %, at the start 2 %)' in alert.line()


def test_logits_of_before_the_first_update_do_not_blame_the_rate():
    samples = [Sample(i, logits={'attn': v}) for i, v in ((1, 1e6), (11, 1e5))]
    _, alerts = feed(samples)
    assert not alerts[0].advice
    assert 'learning rate' not in alerts[0].line()
    assert 'at 1e+06 before the first update' in alerts[0].sentence()
    grown = [Sample(i, logits={'attn': 10.0 * i}) for i in (1, 11)]
    _, alerts = feed(grown)
    assert alerts[0].advice == 'lr'


def test_a_loss_scale_that_grows_and_falls_again():
    monitor, alerts = Monitor(), []
    for i in range(30, 200):
        scale = 1024.0 * 2 ** (i // 5 % 3)
        monitor, new = monitor.after_scale(i, scale, LIMITS)
        alerts += new
    assert alerts == []
    for i in range(4):
        monitor, new = monitor.after_scale(200 + i, 512.0 / 2**i, LIMITS)
        alerts += new
    assert [alert.rule for alert in alerts] == ['scale_falls']


@pytest.mark.parametrize(('scale', 'is_told'), [(1.0, False), (2**-20, True)])
def test_gradients_that_are_all_0(scale, is_told):
    """A loss of 0 has them as well, but no loss scale below 1 is needed."""
    samples = [
        Sample(i, grads={'head': 0.0}, loss_scale=scale) for i in (1, 11)
    ]
    _, alerts = feed(samples)
    assert bool(alerts) is is_told
    for alert in alerts:
        assert "loss_scale='dynamic'" in alert.line()


def test_an_alert_on_a_falling_scale_ends_when_it_falls_no_more():
    monitor, alerts = Monitor(), []
    for i in range(5):
        monitor, new = monitor.after_scale(30 + i, 64.0 / 2**i, LIMITS)
        alerts += new
    for i in (50, 100, 133, 134, 150):
        monitor, new = monitor.after(Sample(i), LIMITS, 50)
        alerts += new
    assert [(a.rule, a.cleared) for a in alerts] == [
        ('scale_falls', None),
        ('scale_falls', 134),
    ]
    for i in range(5):
        monitor, new = monitor.after_scale(200 + i, 2.0**-i, LIMITS)
        alerts += new
    assert alerts[-1].cleared is None


@pytest.mark.parametrize('num_others', [0, 1])
def test_an_alert_on_a_divergence_ends_when_all_is_learnt_again(num_others):
    """The losses of another optimizer, which fall, say nothing about it."""
    falling = [3.0 - i / 40 for i in range(80)]
    losses = [*falling, *[3.0] * 40, *[3.0 - i / 30 for i in range(80)]]
    commits = [Commit(i, loss) for i, loss in enumerate(losses, 1)]
    monitor, alerts = Monitor(), []
    for i in range(1, len(commits) + 1):
        known = commits[max(i - 64, 0) : i]
        monitor, new = monitor.after_commit(i, 'default', known, LIMITS)
        alerts += new
        for _ in range(num_others):
            other = [Commit(i, -float(i))]
            monitor, new = monitor.after_commit(i, 'other', other, LIMITS)
            alerts += new
        monitor = Monitor.from_dict(monitor.to_dict())
    first, cleared = alerts
    assert first.rule == 'diverging'
    assert first.iter < 120 < 180 < cleared.cleared
    assert cleared.id == first.id


def test_a_rollback_begins_new_trends():
    losses = [Commit(i, 3.0 - i / 40) for i in range(1, 80)]
    monitor = Monitor()
    for i in range(1, 80):
        monitor, _ = monitor.after_commit(i, 'default', losses[:i], LIMITS)
    monitor, _ = feed(doubling(13.0, last=60), monitor=monitor)
    again = monitor.after_rollback()
    assert again.trends == {}
    alerts = []
    for i in range(80, 120):
        commits = [*losses, Commit(i, 3.0)]
        again, new = again.after_commit(i, 'default', commits, LIMITS)
        monitor, old = monitor.after_commit(i, 'default', commits, LIMITS)
        assert new == []
        alerts += old
    assert [alert.rule for alert in alerts] == ['diverging']


def test_one_large_update_is_no_alert():
    ratios = [0.01, 0.5, 0.01, 0.5, 0.01]
    samples = [Sample(i, update_ratio=r) for i, r in enumerate(ratios, 1)]
    assert feed(samples)[1] == []


def test_updates_that_were_rejected_say_nothing():
    samples = [Sample(i, update_ratio=None) for i in (1, 2, 3)]
    assert feed(samples)[1] == []


@pytest.mark.parametrize(('largest', 'is_told'), [(108.0, True), (90, False)])
def test_attention_logits(largest, is_told):
    _, alerts = feed([Sample(26, logits={'attn': largest, 'other': 5.0})])
    assert [alert.module for alert in alerts] == ['attn'] * is_told


def test_gradients_that_vanish():
    samples = [
        Sample(i, grads={'head': 2.0**-20}, loss_scale=2.0**-14)
        for i in (1, 2)
    ]
    _, (alert,) = feed(samples)
    assert alert.rule == 'underflow'
    # The largest gradient without the scale is 2**-6.
    assert alert.config == f'optim_wrapper=dict(loss_scale={2**8:g})'


def test_gradients_of_zero_say_nothing():
    samples = [
        Sample(i, grads={'head': 0.0}, loss_scale=1.0) for i in (1, 2, 3)
    ]
    assert feed(samples)[1] == []


def test_an_alert_ends_after_samples_inside_the_limit():
    over = [Sample(1, logits={'attn': 200.0})]
    calm = [Sample(i, logits={'attn': 20.0}) for i in range(2, 8)]
    _, alerts = feed([*over, *calm])
    assert [alert.cleared for alert in alerts] == [None, 6]
    assert alerts[1].iter == 1
    assert 'is over' in alerts[1].line()


def test_a_falling_loss_scale():
    monitor, alerts = Monitor(), []
    scale = 65536.0
    for iteration in range(1, 200):
        # The first falls find the scale, the others are trouble.
        if iteration < 10 or iteration in (100, 130, 160):
            scale /= 2
        monitor, new = monitor.after_scale(iteration, scale, LIMITS)
        alerts += new
    assert [alert.iter for alert in alerts] == [160]
    assert alerts[0].rule == 'scale_falls'


def test_a_scale_that_falls_now_and_then():
    monitor = Monitor()
    for iteration in range(1, 3000):
        scale = 65536.0 / 2 ** (iteration // 60)
        monitor, alerts = monitor.after_scale(iteration, scale, LIMITS)
        assert alerts == []


def test_a_loss_that_climbs_back():
    monitor, alerts = Monitor(), []
    losses = [4.0] * 40 + [1.0] * 80 + [2.5] * 40
    commits = []
    for update, loss in enumerate(losses, 1):
        commits.append(Commit(update, loss, lr=0.1))
        monitor, new = monitor.after_commit(update, 'default', commits, LIMITS)
        alerts += new
    assert [alert.rule for alert in alerts] == ['diverging']
    assert 120 < alerts[0].iter <= 140


def test_losses_that_are_read_now_and_then():
    losses = [4.0] * 40 + [1.0] * 80 + [2.5] * 40
    iterations = []
    for every in (1, 8):
        monitor, commits, alerts = Monitor(), [], []
        for update, loss in enumerate(losses, 1):
            # The guard keeps the last 64, some of which were read before.
            commits = [*commits, Commit(update, loss)][-64:]
            if update % every == 0:
                monitor, new = monitor.after_commit(
                    update, 'default', commits, LIMITS
                )
                alerts += new
        iterations.append([alert.iter for alert in alerts])
    (at_once,), (later,) = iterations
    assert at_once <= later < at_once + 8


def test_a_commit_counts_once():
    commits = [Commit(1, 4.0)]
    monitor, _ = Monitor().after_commit(1, 'default', commits, LIMITS)
    again, _ = monitor.after_commit(2, 'default', commits, LIMITS)
    assert again == monitor


def test_samples_are_dense_at_the_start_and_while_watched():
    due = [i for i in range(401) if is_due(i, 50, watch_until=0)]
    assert due == [*range(0, 250, 10), 250, 300, 350, 400]
    due = [i for i in range(300, 401) if is_due(i, 50, watch_until=340)]
    assert due == [*range(300, 340, 5), 350, 400]
    assert all(is_due(i, 1, 0) for i in range(10))


def test_half_the_limit_is_watched_as_long_as_it_grows():
    values = [55.0] * 30
    monitor, watched = Monitor(), []
    for i, value in enumerate(values):
        sample = Sample(1 + 50 * i, logits={'attn': value})
        monitor, _ = monitor.after(sample, LIMITS, 50)
        watched.append(monitor.watch_until)
    assert set(watched) == {51}
    sample = Sample(2001, logits={'attn': 80.0})
    monitor, _ = monitor.after(sample, LIMITS, 50)
    assert monitor.watch_until == 2051


def test_the_memory_is_saved():
    samples = [*doubling(13.0, last=200)]
    samples += [
        Sample(200 + i, logits={'attn': 200.0}, grads={'head': 3.0})
        for i in range(3)
    ]
    monitor, _ = feed(samples)
    monitor, _ = monitor.after_scale(300, 512.0, LIMITS)
    monitor, _ = monitor.after_commit(300, 'default', [Commit(1, 2.0)], LIMITS)
    assert Monitor.from_dict(monitor.to_dict()) == monitor


def test_a_row_is_read_back():
    _, alerts = feed(doubling(13.0))
    row = json.loads(to_json(alerts[0].to_row()))
    assert record_of(row) == alerts[0]


def test_a_rule_of_another_version_has_a_sentence():
    row = AlertRow(iter=3, rule='entropy', value=0.25)
    assert row.sentence() == "rule 'entropy': 0.25"


@pytest.mark.parametrize(
    ('scale', 'words'),
    [(1024.0, 'loss scale 1024 is right'), (2.0**-20, 'is too small')],
)
def test_the_margins_judge_the_loss_scale(scale, words):
    sample = Sample(
        500,
        outputs={
            'head': Largest(32.0, 'float16'),
            'norm': Largest(900.0, 'float32'),
        },
        logits={'attn': 12.0},
        update_ratio=0.004,
        grads={'head': scale / 16},
        loss_scale=scale,
    )
    monitor, _ = feed([sample])
    line = margins(sample, monitor)
    assert "headroom 11.0 bits ('head')" in line
    assert 'update ratio 0.4 %' in line
    assert words in line
    # 65504 * 16 is just below 2**20.
    assert 'up to 2^19 fits' in line


def test_the_margins_judge_a_loss_scale_that_is_too_large():
    line = on_scale(65536.0, 2.0)
    assert 'is too large' in line
    assert 'up to 2^14 fits' in line


def test_the_margins_forget_the_gradients_of_the_start():
    grads = [512.0, *[0.5] * NUM_GRADS]
    samples = [Sample(i, grads={'head': grad}) for i, grad in enumerate(grads)]
    monitor, _ = feed(samples)
    assert 'largest scaled gradient 0.5 ' in margins(samples[-1], monitor)


@pytest.mark.parametrize('grad', [1e-6, 3.0, 1e9])
def test_a_scale_that_fits_has_room_on_both_sides(grad):
    scaled = fitting_scale(grad) * grad
    assert scaled > 2**11 * LEAST_SCALED_GRAD
    assert scaled * 2**11 < 65504


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('headroom', 0),
        ('headroom', 'x'),
        ('headroom', 99),
        ('update_ratio', -1),
        ('update_ratio', 'large'),
        ('attention_logits', NAN),
        ('underflow', math.inf),
        ('underflow', 1e9),
        ('operands', 2.0),
        ('scale_falls', 2.5),
        ('diverging', True),
        ('diverging', 5.0),
    ],
)
def test_limits_that_are_not_allowed(key, value):
    with pytest.raises(GuardConfigError, match=key) as error:
        StabilityLimits(**{key: value})
    assert f'{key} is {value!r}: it must be ' in str(error.value)


@pytest.mark.parametrize('key', StabilityLimits.__annotations__)
def test_each_rule_can_be_switched_off(key):
    limits = StabilityLimits(**{key: None})
    samples = [
        Sample(
            i,
            outputs={'head': Largest(6e4, 'float16')},
            logits={'attn': 1e3},
            update_ratio=0.5,
            grads={'head': 1e-6},
            loss_scale=1.0,
            operands={'head': Operand(1e-6 * 1e-4**i)},
        )
        for i in range(1, 9)
    ]
    monitor, alerts = feed(samples, limits)
    for i in range(21, 30):
        monitor, new = monitor.after_scale(i, 2.0**-i, limits)
        alerts += new
    losses = [4.0] * 40 + [1.0] * 80 + [2.5] * 40
    for update, loss in enumerate(losses, 1):
        monitor, new = monitor.after_commit(
            update, 'default', [Commit(update, loss)], limits
        )
        alerts += new
    rules = {alert.rule for alert in alerts}
    assert rules == set(StabilityLimits.__annotations__) - {key}
