"""The evidence of several rejected batches together."""

import pytest

from mmnanguard.core import Action, Autopsy, Cause, GuardEvent
from mmnanguard.core.diagnosis import diagnose
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.operation_advice import advise_on
from mmnanguard.core.rows.guard_event import PAST_GUARD
from mmnanguard.core.rows.input_row import InputRow

CAUSE = Cause.LOSS_NONFINITE


def event(iter_, cause=CAUSE, **keys):
    keys = {'id': str(iter_), **keys}
    return GuardEvent(iter=iter_, cause=cause, action=Action.SKIP, **keys)


def log_of_0(**keys):
    return Autopsy(
        phase='forward',
        op='aten.log',
        source='head.py:1',
        dtype='float16',
        operands=(0.0,),
        is_pole=True,
        repeats=True,
        **keys,
    )


def advice_on(*autopsies):
    events = [event(number + 1) for number in range(len(autopsies))]
    return diagnose(Evidence(CAUSE.value, events, autopsies)).advice.short


def test_a_cure_has_to_help_in_each_batch():
    """A coarser dtype rounds other numbers onto the pole."""
    first = log_of_0(tried={'fp32': True, 'bfloat16': True})
    second = log_of_0(tried={'fp32': True, 'bfloat16': False})
    assert 'bfloat16' in advice_on(first)
    assert 'float32' in advice_on(first, second)
    assert 'float32' in advice_on(second, first)
    # Another operation is another fault.
    other = second.replace(op='aten.exp')
    assert 'bfloat16' in advice_on(first, other)


def test_a_module_that_needs_more_than_float32_is_not_cured():
    keys = dict(module='head', remedy='fp32')
    first = log_of_0(tried={'module_fp32': True}, **keys)
    second = log_of_0(tried={'module_fp32': False}, module='head')
    assert 'float32' in advice_on(first)
    assert 'float32' not in advice_on(first, second)
    # Another module may need more.
    other = second.replace(module='neck')
    assert 'float32' in advice_on(first, other)


# The bad samples of each rejected batch, and whether the code that makes the
# inputs is at fault.
@pytest.mark.parametrize(
    ('bad', 'is_random'),
    [
        (['a', 'c', 'b', 'd'], True),
        # The others came once only.
        (['a', 'c', 'b', 'd', *'egikm'], True),
        (['a', 'c', 'a', 'c'], False),
        # 'c' did not come again.
        (['a', 'c', 'a'], False),
        (['a', 'c'], False),
    ],
)
def test_samples_that_are_fine_when_they_come_again(bad, is_random):
    batches = [('a', 'b'), ('c', 'd')] * 2 + ['ef', 'gh', 'ij', 'kl', 'mn']
    events, rows = [], []
    for number, name in enumerate(bad):
        # Most updates are good.
        iter_ = 10 * number + 1
        events.append(event(iter_, samples=tuple(batches[number])))
        keys = {'inputs': (name,)}
        rows.append(
            InputRow(id=str(iter_), samples=(name,), num_samples=1, keys=keys)
        )
    seen = Autopsy(phase='input', repeats=True, samples=('a',))
    evidence = Evidence(CAUSE.value, events, [seen], rows, share=0.1)
    diagnosis = diagnose(evidence)
    assert ('augmentation' in diagnosis.advice.short) is is_random
    assert bool(diagnosis.samples) is not is_random
    assert bool(evidence.samples()) is not is_random
    # Rows that leave out names do not tell.
    cut = [row.replace(num_samples=9) for row in rows]
    assert diagnose(Evidence(CAUSE.value, events, [seen], cut, 0.1)).samples


def test_a_step_past_the_guard_is_named_where_weights_are_bad():
    cause = Cause.WEIGHT_NONFINITE
    bad = event(1, cause, origin=f'after SGD.step() {PAST_GUARD}')
    diagnosis = diagnose(Evidence(cause.value, [bad]))
    assert 'SGD.step() was called past the guard' in diagnosis.reason
    assert 'update_params' in diagnosis.advice.long
    plain = diagnose(Evidence(cause.value, [event(1, cause)]))
    assert 'update_params' not in plain.advice.long


@pytest.mark.parametrize(('iter_', 'is_buffer'), [(1, False), (9, True)])
def test_an_attribute_that_is_bad_in_the_first_iteration(iter_, is_buffer):
    """Class weights of 1/0 come from no batch."""
    kept = Autopsy(
        phase='loss', input_absmax=0.0, keys=('net.weight',), repeats=True
    )
    diagnosis = diagnose(Evidence(CAUSE.value, [event(iter_)], [kept]))
    assert ('a buffer' in diagnosis.advice.short) is is_buffer
    assert ('is set' in diagnosis.advice.short) is not is_buffer


@pytest.mark.parametrize(
    ('op', 'words'),
    [
        ('native_batch_norm', 'running variance is negative'),
        ('native_layer_norm', 'Set an eps above 0'),
    ],
)
def test_a_normalization_without_a_variance(op, words):
    finding = log_of_0().replace(op=f'aten.{op}', operands=(), dtype='float32')
    advice = advise_on(finding)
    assert words in advice.long
    assert 'clamp' not in advice.long.lower()


def test_an_own_backward_is_to_be_mended():
    """No safe operation stands for it."""
    finding = log_of_0(derivative='MixBackward').replace(phase='backward')
    assert 'aten.log in MixBackward, head.py:1' in finding.finding()
    advice = advise_on(finding)
    assert advice.short == 'mend the backward pass at head.py:1'
    assert 'safe_' not in advice.long


@pytest.mark.parametrize(
    ('num_samples', 'share', 'is_cleaned'),
    [(8, 0.5, True), (8, 0.1, False), (2, 0.5, False)],
)
def test_many_bad_samples_are_cleaned_and_few_left_out(
    num_samples, share, is_cleaned
):
    events, rows = [], []
    for number in range(8):
        bad = (f'{number % num_samples}',)
        names = (*bad, *(f'{number}-{index}' for index in range(3)))
        events.append(event(number, samples=names))
        row = InputRow(id=str(number), samples=bad, num_samples=1)
        rows.append(row.replace(keys={'inputs': bad}))
    seen = Autopsy(phase='input', repeats=True, keys=('inputs',))
    diagnosis = diagnose(Evidence(CAUSE.value, events, [seen], rows, share))
    assert diagnosis.keeps_samples is is_cleaned
    assert diagnosis.advice.short.startswith('clean') is is_cleaned
    # One of four in half of the batches.
    assert ('12% of the samples' in diagnosis.advice.long) is is_cleaned
    assert len(diagnosis.samples) == num_samples
