"""A console line has at most 160 columns, and names what is to blame."""

from itertools import product

import pytest

from mmnanguard._support.console_line import WIDTH, columns, fit, wrap
from mmnanguard.core import Action, Autopsy, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows import alert_row
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rows.audit_row import AuditRow
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.remedy_row import RemedyRow, line_of_fp32
from mmnanguard.core.rows.rollback_row import RollbackRow

# The end of a name, which must be in the line whatever its length.
END = 'q.img_0042.weight'
NAMES = (
    END,
    f'{"backbone.layers." * 4}{END}',
    f'{"/a/folder/of/a/dataset" * 9}/{END}',
    # Each letter has two columns, and the last is shown as an escape.
    f'{"数据集" * 40}\x1b{END}',
)
SAMPLES = tuple(f'{number}/{NAMES[2]}' for number in range(64))
NUMBER = -1.23456789e-30


def check(line, *culprits):
    assert columns(line) <= WIDTH, line
    assert '\n' not in line
    for culprit in culprits:
        assert culprit[-len(END) :] in line, line


def all_events():
    """Yield events with all that an event can say, and with little."""
    lengths = product(zip(NAMES, NAMES[::-1]), Cause, Action, (False, True))
    for (name, sample), cause, action, is_full in lengths:
        tensor = BadTensor(name, 'optimizer', 'nan', 1, 8, 0.0, 1.0, 'float32')
        event = GuardEvent(
            action,
            cause,
            iter=123456789,
            loss=float('nan'),
            params=(tensor,) * 5,
            num_bad_params=1234,
            num_params=12345,
            samples=(sample, *SAMPLES),
            spike=dict(what='grad_norm', value=NUMBER, limit=1.0, mean=NUMBER),
            step=dict(optimizer='A' * 40, settings={'betas': (0.9, 0.999)}),
        )
        if is_full:
            event = event.replace(
                optimizer=name,
                ranks=tuple(range(1000, 1064)),
                bad_samples=(sample, *SAMPLES),
                bad_losses={name: 12345},
                num_iters=123456,
                consecutive_skips=12345,
                loss_scale={'before': NUMBER, 'after': NUMBER},
                scale_blamed=False,
                origin=f'as the file of load_from already had it: {sample}',
                inputs={key: {'is_finite': False} for key in NAMES},
                micro_batches={'total': 4096, 'left_out': [{}] * 999},
            )
        yield event, name, sample


def test_an_event_of_any_length():
    for event, name, sample in all_events():
        line = event.line()
        check(line)
        assert f'Iter {event.iter}' in line
        if event.bad_samples:
            check(line, sample)
        # Divergence, spikes, losses and inputs have no tensor to name.
        elif name[-len(END) :] in event.sentence():
            check(line, name)


PHASES = ('', 'input', 'weight', 'forward', 'loss', 'backward')
FINDINGS = (
    dict(repeats=False),
    dict(repeats=True),
    dict(repeats=True, is_pole=True, derivative='sqrt'),
    dict(repeats=True, mask=f'aten.masked_fill at {NAMES[2]}'),
    dict(repeats=True, op='', input_absmax=0.0),
)


@pytest.mark.parametrize('name', NAMES, ids=('short', 'long', 'path', 'wide'))
@pytest.mark.parametrize('phase', PHASES)
def test_an_autopsy_of_any_length(phase, name):
    for finding, samples in product(FINDINGS, ((), (name, *SAMPLES))):
        values = dict(
            module=name,
            module_type='Convolution' * 3,
            op='aten.convolution_backward',
            source=f'{name}:1234',
            dtype='bfloat16',
            operands=(0.0, NUMBER),
            samples=samples,
            num_samples=64,
            keys=(name, *NAMES),
            tried=dict(fp32=True, bfloat16=False, without_samples=True),
        )
        autopsy = Autopsy(phase=phase, **{**values, **finding})
        for is_compiled in (False, True):
            check(autopsy.line(123456789, is_compiled))
        if finding['repeats'] and phase:
            # Samples are named unless the weights are at fault.
            check(autopsy.line(123456789), name)


@pytest.mark.parametrize('rule', [*alert_row.SENTENCES, 'of another version'])
def test_an_alert_of_any_length(rule):
    config = line_of_fp32(NAMES[2:3])
    for name, numbers in product(NAMES, (None, 123456.789)):
        alert = AlertRow(
            rule=rule, iter=123456789, module=name, source=name, config=config
        ).replace(value=NUMBER, limit=NUMBER, dtype='bfloat16', op='logsumexp')
        alert = alert.replace(
            doubles=numbers, left=numbers, first=NUMBER, loss=NUMBER
        ).replace(first_loss=NUMBER, lr=NUMBER, most=NUMBER)
        if rule == alert_row.UNDERFLOW:
            alert = alert.replace(
                config='optim_wrapper.loss_scale=dict(init_scale=65536.0)'
            )
        check(alert.line())
        check(alert.replace(cleared=123456789).line())
        if name[-len(END) :] in alert.sentence():
            check(alert.line(), name)


@pytest.mark.parametrize('name', NAMES, ids=('short', 'long', 'path', 'wide'))
def test_other_rows_of_any_length(name):
    ranks = tuple(range(1000, 1064))
    for since in (None, 1):
        row = InputRow(iter=123456789, since=since, num_samples=64)
        row = row.replace(samples=(name, *SAMPLES), ranks=ranks)
        row = row.replace(keys=dict.fromkeys(NAMES, (name,)), usual=NAMES)
        check(row.line(with_ranks=True), name)
    tensor = BadTensor(name, 'weights', 'nan', 1, 8, 0.0, 1.0, 'float32')
    audit = AuditRow(iter=123456789, tensors=(tensor,), num_bad=1234)
    audit = audit.replace(where=('weights', 'ema'), ranks=ranks)
    check(audit.line(), name)
    check(audit.replace(checkpoint=name).line(), name)
    remarks = ('it has no weights',) * 9
    check(DumpRow(path=name, bytes=2**30, remarks=remarks).line(), name)
    rollback = RollbackRow(iter=123456789, to=123456780, path=name)
    evidence = 'the losses of the last 64 updates had risen before it' * 3
    rollback = rollback.replace(loss_scale=NUMBER, lr_factor=NUMBER)
    check(rollback.replace(evidence=evidence).line(max_rollbacks=12345))
    for remedy in ('fp32', 'scale', 'lr', 'of another version'):
        row = RemedyRow(remedy=remedy, module=name, value=NUMBER)
        check(row.replace(config=line_of_fp32([name])).line(), name)


def test_what_matters_least_gets_the_rest_of_the_room():
    first, second = 'a' * 100, 'b' * 100
    assert fit([first, 'a'], [second, 'b']) == f'{first}; b'
    assert fit([first, 'a'], [second, 'b'], first=(1,)) == f'a; {second}'
    assert fit('a', ['b', ''], ['c' * 200, '']) == 'a; b'
    assert fit('a' * 200) == 'a' * 200


def test_a_message_is_wrapped_and_loses_nothing():
    words = ' '.join(f'word{number}' for number in range(99))
    message = f'short\n  {words}\n{"数" * 200}'
    wrapped = wrap(message)
    assert all(columns(line) <= WIDTH for line in wrapped.split('\n'))
    assert ''.join(wrapped.split()) == ''.join(message.split())
    assert wrap('a' * WIDTH) == 'a' * WIDTH
