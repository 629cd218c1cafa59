"""The words on a fault say what the numbers say, and no more."""

import math
from dataclasses import replace

import pytest

from mmnanguard.core import Action, Autopsy, Cause, GuardEvent, GuardState
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.diagnosis import diagnose
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.growth_advice import explain_growth
from mmnanguard.core.operation_advice import advise_on
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rules.recent_commits import Commit, Growth
from mmnanguard.core.step_advice import advise_on_step
from mmnanguard.hooks.recovery.lower_rate import RateEvidence

FLOAT32_MAX = 3.4028e38


def autopsy(op, *operands, output_absmax=math.inf, **keys):
    keys = {'phase': 'forward', **keys}
    return Autopsy(
        op=f'aten.{op}',
        operands=operands,
        output_absmax=output_absmax,
        dtype='float32',
        dtype_max=FLOAT32_MAX,
        module_type='Head',
        repeats=True,
        **keys,
    )


def event(cause=Cause.LOSS_NONFINITE, iter_=1, **keys):
    return GuardEvent(iter=iter_, cause=cause, action=Action.SKIP, **keys)


def test_a_negative_learning_rate_goes_uphill():
    rising = Growth((1.0, 9.0, 90.0), (1.0, 9.0, 90.0), -0.1, 90.0)
    _, advice = explain_growth(rising, Evidence(''))
    assert 'param_scheduler' in advice.short
    assert 'uphill' in advice.long
    assert 'clip_grad' not in advice.long
    _, advice = explain_growth(rising._replace(lr=0.1), Evidence(''))
    assert 'clip_grad' in advice.long


@pytest.mark.parametrize(
    ('losses', 'is_bottomless'),
    [
        ((-1.0, -5.0, -90.0, -2e3), True),
        ((8e5, -1e10, -4e18, -1e34), True),
        ((-1.6e37, -3.5e37, -4e37, -9e37), True),
        # A similarity cannot fall below -1, and a density falls slowly.
        ((-0.5, -0.6, -0.75, -0.95), False),
        ((-700.0, -720.0, -741.0, -760.0), False),
        ((-1.0, -30.0, -5e3, 4e6), False),
        ((1.0, 5.0, 90.0, 2e3), False),
    ],
)
def test_a_loss_without_a_lower_bound_is_the_first_cause(
    losses, is_bottomless
):
    growth = Growth(losses, (1.0, 9.0, 90.0, 900.0), 0.1, 900.0)
    reason, advice = explain_growth(growth, Evidence(''))
    assert ('lower bound' in advice.short) is is_bottomless
    assert f'{losses[-1]:.3g}' in reason
    assert ('normalized embeddings' in advice.long) is is_bottomless


@pytest.mark.parametrize(
    ('cause', 'resumes'),
    [(Cause.STEP_NONFINITE, False), (Cause.STEP_SPOILED, True)],
)
def test_a_bad_learning_rate_leads_to_the_schedule(cause, resumes):
    step = dict(nonfinite=['lr of group 0 is nan'])
    general = facts_of_cause(cause.value).advice
    short = advise_on_step([event(cause, step=step)], general).short
    assert short.startswith('look at param_scheduler: lr of group 0 is nan')
    assert ('clean checkpoint' in short) is resumes


@pytest.mark.parametrize('name', ['log', 'sqrt', 'pow'])
def test_a_negative_number_is_no_pole(name):
    finding = autopsy(name, -0.3, output_absmax=math.nan, is_pole=True)
    advice = advise_on(finding)
    assert 'domain' in advice.short
    assert 'positive' in advice.long
    assert 'Add an epsilon' not in advice.long
    at_pole = autopsy('log', 0.0, is_pole=True)
    assert 'Add an epsilon' in advise_on(at_pole).long


def test_an_overflow_of_small_numbers_says_what_it_computes():
    finding = autopsy('exp', 200.0, is_pole=False)
    assert 'exp(200) is beyond 3.4e+38' in finding.finding()
    assert 'computes exp(200)' in advise_on(finding).long
    division = autopsy('div', 0.4, 1e-40, is_pole=False, phase='backward')
    assert 'next to its pole at 0' in division.finding()
    assert 'divisor' in advise_on(division).short
    unknown = autopsy('mm', input_absmax=1e30, is_pole=False)
    assert 'its input was up to 1e+30' in unknown.finding()
    # Large numbers overflow by themselves.
    large = autopsy('div', 1e30, 1e-10, is_pole=False)
    assert 'pole' not in large.finding()


def test_samples_are_cleared_if_the_rest_is_bad_as_well():
    finding = autopsy('mm', samples=('a',), tried={'without_samples': False})
    assert finding.finding().startswith('the batch made the model itself (')
    finding = autopsy('mm', samples=('a',), tried={'without_samples': True})
    assert finding.finding().startswith("sample 'a' made")


def test_an_operation_that_went_bad_clears_the_inputs():
    """The model may mask the NaN in them on purpose."""
    rows = [InputRow(samples=('a',), keys={'inputs': ('a',)})]
    cause = Cause.LOSS_NONFINITE.value
    evidence = Evidence(cause, [event(samples=('a', 'b'))], [], rows)
    assert evidence.samples() == ('a',)
    evidence = replace(evidence, autopsies=[autopsy('log', 0.0)])
    assert evidence.samples() == ()


@pytest.mark.parametrize(('num_bad', 'is_code'), [(4, True), (1, False)])
def test_inputs_that_are_bad_in_most_samples_are_no_bad_samples(
    num_bad, is_code
):
    events, rows = [], []
    for number in range(4):
        names = tuple(f'{number}-{index}' for index in range(4))
        events.append(event(iter_=number + 1, samples=names))
        bad = names[:num_bad]
        rows.append(InputRow(samples=bad, keys={'inputs': bad}))
    seen = Autopsy(phase='input', repeats=True, keys=('inputs',))
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, events, [seen], rows))
    assert ('code that makes' in diagnosis.advice.short) is is_code
    assert bool(diagnosis.samples) is not is_code
    # Where most updates are good, most samples are.
    rare = Evidence(cause, events, [seen], rows, share=0.1)
    assert diagnose(rare).samples
    late = [row.replace(iter=row.iter + 1000) for row in events]
    assert diagnose(Evidence(cause, late, [seen], rows)).samples


def test_a_tensor_that_is_bad_from_the_start_is_named():
    finding = Autopsy(phase='weight', repeats=True, keys=('net.weights',))
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, [event()], [finding]))
    assert "'net.weights' is not finite" in diagnosis.reason
    assert "mend 'net.weights'" in diagnosis.advice.short
    # A row of an earlier version does not name it.
    unnamed = diagnose(Evidence(cause, [event()], [finding.replace(keys=())]))
    assert 'AutopsyHook' in unnamed.advice.short


def test_a_tensor_that_the_model_keeps_leads_to_a_buffer():
    finding = autopsy('').replace(op='', input_absmax=0.0, keys=('net.mem',))
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, [event(iter_=9)], [finding]))
    assert "uses 'net.mem'" in diagnosis.reason
    assert "make 'net.mem' a buffer" in diagnosis.advice.short
    # A tensor outside of the model has no name.
    other = diagnose(
        Evidence(cause, [event(iter_=9)], [finding.replace(keys=())])
    )
    assert 'did not compute' in other.reason
    assert 'NumPy' in other.advice.long


def test_a_rounding_to_a_pole_says_what_helps():
    finding = autopsy('log', 0.0, is_pole=True).replace(
        dtype='float16', tried={'fp32': True}
    )
    assert 'float32' in advise_on(finding).short
    assert 'epsilon' in advise_on(finding).long


def test_equal_eigenvalues_need_no_epsilon():
    finding = autopsy('div_', 0.0, 0.0, phase='backward', is_pole=True)
    advice = advise_on(finding.replace(derivative='linalg_svd'))
    assert 'eigenvalues' in advice.short
    assert 'epsilon' not in advice.long


def test_samples_in_each_rejected_batch_are_suspects_of_an_overflow():
    events = []
    for number in range(4):
        names = ('a', f'{number}-1', f'{number}-2')
        events.append(event(iter_=1 + 20 * number, samples=names))
    finding = autopsy('mse_loss', input_absmax=1e21, is_pole=False)
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, events, [finding], share=0.1))
    assert diagnosis.suspects == ('a',)
    assert "Each rejected batch holds sample 'a'" in diagnosis.advice.long
    cured = finding.replace(tried={'fp32': True})
    diagnosis = diagnose(Evidence(cause, events, [cured], share=0.1))
    assert not diagnosis.suspects


def test_an_outlier_in_float16_is_not_put_into_float32():
    """Float32 would commit its huge gradients."""
    batches = [('a', f'{number}') for number in range(3)]
    events = [event(samples=names) for names in batches]
    finding = autopsy(
        'mm',
        input_absmax=1e5,
        is_pole=False,
        samples=('a',),
        tried={'module_fp32': True, 'without_samples': True},
    )
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, events, [finding], share=0.1))
    assert diagnosis.samples == ('a',)
    assert 'leave it out' in diagnosis.advice.long
    assert 'float32, which was tried' not in diagnosis.advice.long


def test_a_second_culprit_in_other_batches_is_named():
    events = []
    for number in range(4):
        names = ('a', 'b') if number % 2 else ('c', 'd')
        events.append(event(iter_=1 + number, id=f'{number}', samples=names))
    bad = Autopsy(id='1', phase='input', samples=('a',), repeats=True)
    pole = autopsy('reciprocal', 0.0, is_pole=True, id='2')
    cause = Cause.LOSS_NONFINITE.value
    diagnosis = diagnose(Evidence(cause, events, [bad, pole]))
    assert diagnosis.samples == ('a',)
    assert diagnosis.other is pole
    assert 'has a pole at reciprocal(0)' in diagnosis.advice.long
    assert 'Add an epsilon' in diagnosis.advice.long
    same = pole.replace(id='3')  # a batch with the sample
    assert diagnose(Evidence(cause, events, [bad, same])).other is None


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('nll_loss_forward', 'labels are ignored'),
        ('mean', 'too few elements'),
        ('_softmax', 'masked as a whole'),
    ],
)
def test_an_operation_on_nothing_says_what_is_missing(name, words):
    finding = autopsy(name, output_absmax=math.nan, is_pole=True)
    advice = advise_on(finding)
    assert words in advice.long
    assert 'epsilon' not in advice.long
    assert 'pole' not in advice.short


def test_a_rounded_cosine_is_shown_in_full():
    finding = autopsy('acos', 1.0000001, output_absmax=math.nan, is_pole=True)
    assert 'not defined at acos(1.0000001)' in finding.finding()
    assert 'clamp its input to [-1' in advise_on(finding).long
    inside = autopsy('acos', 0.3, output_absmax=math.nan, is_pole=True)
    assert '[-1' not in advise_on(inside).long


@pytest.mark.parametrize(
    ('settings', 'word'),
    [
        (dict(weight_decay=-10.0), 'weight_decay=-10'),
        (dict(momentum=1.2), 'momentum=1.2'),
        (dict(maximize=True), 'maximize=True'),
        (dict(weight_decay=0.1, momentum=0.9), ''),
    ],
)
def test_settings_that_make_weights_grow_are_named(settings, word):
    rising = Growth((1.0, 9.0, 90.0), (1.0, 9.0, 90.0), 0.1, 90.0)
    step = dict(optimizer='SGD', settings=settings)
    struck = event(step=step, growth=rising._asdict(), consecutive_skips=20)
    diagnosis = diagnose(Evidence(struck.cause.value, [struck]))
    assert ('ower the learning rate' in diagnosis.advice.long) is not bool(
        word
    )
    assert word in diagnosis.reason
    assert word in diagnosis.advice.short
    evidence = RateEvidence.of(struck.replace(loss=9000.0), state_of(rising))
    assert evidence.blames_rate is not bool(word)
    assert word in evidence.words(None)


def state_of(growth):
    """Return the state of a guard after the commits of a growth."""
    numbers = zip(growth.losses, growth.grad_norms)
    record = [Commit(i, *pair, lr=growth.lr) for i, pair in enumerate(numbers)]
    return GuardState(recent_commits=tuple(record))


def test_a_smaller_negative_rate_goes_uphill_as_well():
    rising = Growth((1.0, 9.0, 90.0), (1.0, 9.0, 90.0), -0.1, 90.0)
    assert not RateEvidence(rising, has_diverged=False).blames_rate
    assert RateEvidence(rising._replace(lr=0.1), False).blames_rate


def test_a_beta_of_1_is_named():
    step = dict(optimizer='Adam', settings=dict(betas=[0.9, 1.0]))
    events = [event(Cause.STEP_NONFINITE, step=step)]
    general = facts_of_cause(events[0].cause.value).advice
    assert 'betas=(0.9, 1.0)' in advise_on_step(events, general).long


def test_float16_is_a_suspect_where_nothing_is_known():
    cause = Cause.LOSS_NONFINITE.value
    scale = dict(before=64.0, after=64.0)
    assert 'bfloat16' not in diagnose(Evidence(cause, [event()])).advice.long
    scaled = Evidence(cause, [event(loss_scale=scale)])
    assert "dtype='bfloat16'" in diagnose(scaled).advice.long


@pytest.mark.parametrize(
    ('facts', 'words'),
    [
        (
            dict(op='aten.pow', is_pole=True, operands=(0.0, -6.0)),
            'use safe_divide of',
        ),
        (
            dict(op='aten.pow', is_pole=True, operands=(-1.0, 0.5)),
            'Make its base positive',
        ),
        (
            dict(
                op='aten.mul',
                dtype='float16',
                dtype_max=65504.0,
                operands=(6e4, 2.0),
                tried=dict(without_samples=True),
            ),
            'compute it in float32 or bfloat16',
        ),
        (
            dict(
                op='aten._to_copy',
                dtype='float16',
                input_absmax=1e10,
                dtype_max=65504.0,
                tried=dict(fp32=False, bfloat16=False),
            ),
            'mask with torch.finfo(dtype).min',
        ),
        (
            dict(op='aten.rsqrt', is_pole=True, derivative='acos'),
            'Clamp its input to [-1 + 1e-6, 1 - 1e-6]',
        ),
        (dict(op='aten.smooth_l1_loss', is_pole=True), 'a selection is empty'),
        (dict(op='aten.mse_loss', is_pole=True), 'a selection is empty'),
    ],
)
def test_the_advice_fits_the_operation(facts, words):
    facts = dict(phase='forward', output_absmax=math.nan, **facts)
    assert words in advise_on(Autopsy(repeats=True, **facts)).long


def test_a_sum_of_nothing_but_masks_is_no_bad_number():
    finding = Autopsy(
        repeats=True,
        phase='backward',
        op='aten.sub',
        derivative='logsumexp',
        source='crf.py:9',
        dtype='float32',
        is_pole=True,
        operands=(-math.inf, -math.inf),
    )
    advice = advise_on(finding)
    assert 'number that is not finite' not in finding.sentence() + advice.long
    assert 'finite number' in advice.short
    assert 'logsumexp at crf.py:9' in advice.long


def stepping(optimizer='SGD', cause=Cause.LOSS_NONFINITE, **settings):
    step = dict(optimizer=optimizer, settings=settings)
    return Evidence(cause.value, [event(cause, step=step)])


@pytest.mark.parametrize(
    ('optimizer', 'settings', 'blamed'),
    [
        ('SGD', dict(lr=0.1, weight_decay=1000.0), True),
        ('AdamW', dict(lr=3e-3, weight_decay=1000.0), True),
        # Adam normalizes the decay, and momentum damps it.
        ('Adam', dict(lr=3e-3, weight_decay=1000.0), False),
        ('SGD', dict(lr=0.1, weight_decay=30.0, momentum=0.9), False),
        ('SGD', dict(lr=0.1, weight_decay=1e-4), False),
    ],
)
def test_a_decay_that_makes_weights_grow_is_named(optimizer, settings, blamed):
    evidence = stepping(optimizer, **settings)
    rising = Growth((1.0, 9.0, 90.0), (1.0, 9.0, 90.0), 0.1, 90.0)
    for advice in (
        diagnose(evidence).advice,
        explain_growth(rising, evidence)[1],
    ):
        assert ('weight_decay=1000' in advice.short) is blamed
        assert not (blamed and 'ower the learning rate' in advice.long)
    # A lower rate cures that, too.
    rate = RateEvidence.of(evidence.events[0], GuardState())
    assert not rate.uphill


@pytest.mark.parametrize('cause', list(Cause)[1:])
@pytest.mark.parametrize(
    'settings', [dict(momentum=1.5), dict(lr=-0.1), dict(betas=[0.9, 1.0])]
)
def test_an_impossible_setting_is_named_without_any_growth(cause, settings):
    if facts_of_cause(cause.value).is_of_inputs:
        return
    evidence = stepping(cause=cause, **settings)
    advice = diagnose(evidence).advice
    name = 'beta' if 'betas' in settings else next(iter(settings))
    assert name in advice.short + advice.long
    rate = RateEvidence.of(evidence.events[0], GuardState())
    assert name in rate.words(None)
    assert not rate.blames_rate
    # A loss may rise on purpose.
    usual = diagnose(stepping(cause=cause, maximize=True)).advice
    assert 'maximize' not in usual.long


def test_an_eps_after_the_root_is_no_cure():
    step = dict(optimizer='RMSprop', settings=dict(eps=1e-8, centered=True))
    general = facts_of_cause('step_nonfinite').advice
    advice = advise_on_step([event(Cause.STEP_NONFINITE, step=step)], general)
    assert 'centered=False' in advice.long
    assert 'larger eps' not in advice.long


def test_an_overflow_before_the_first_update_is_not_of_the_rate():
    first = event(Cause.NORM_OVERFLOW, 20, since=1)
    advice = diagnose(Evidence('norm_overflow', [first] * 2)).advice
    assert 'ormalize the inputs' in advice.long
    assert 'learning rate' not in advice.long
    later = event(Cause.NORM_OVERFLOW, 20, since=5)
    advice = diagnose(Evidence('norm_overflow', [later] * 2)).advice
    assert 'learning rate' in advice.long
