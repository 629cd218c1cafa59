"""Each kind of row turns into a record and back, and odd rows do no harm."""

import json
import math
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnanguard.core import Action, Autopsy, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.alert_row import SENTENCES, AlertRow
from mmnanguard.core.rows.audit_row import AuditRow
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.end_row import EndRow
from mmnanguard.core.rows.halt_row import HaltRow
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.json_numbers import (
    parse_number,
    parse_numbers,
    to_json,
    to_jsonable,
)
from mmnanguard.core.rows.read_row import (
    RECORDS,
    OtherRow,
    record_of,
    sentence_of,
)
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.core.rows.rollback_row import RollbackRow
from mmnanguard.core.rows.start_row import StartRow

TEXTS = st.text(max_size=5)
COUNTS = st.integers(0, 10**6)
# One NaN object: a tuple that holds it is equal to another one with it.
FLOATS = st.floats(allow_nan=False) | st.just(math.nan)
LOSSES = st.dictionaries(TEXTS, FLOATS, max_size=2)
NAMES = st.lists(TEXTS, max_size=3).map(tuple)
RANKS = st.lists(COUNTS, max_size=3).map(tuple)
RANGES = st.dictionaries(
    TEXTS,
    st.fixed_dictionaries({'min': FLOATS, 'is_finite': st.booleans()}),
    max_size=2,
)
TENSORS = st.lists(
    st.builds(
        BadTensor,
        *(TEXTS, TEXTS, st.sampled_from(['nan', 'inf', 'huge'])),
        *(COUNTS, COUNTS, FLOATS, FLOATS, TEXTS),
    ),
    max_size=2,
).map(tuple)
SPIKES = st.fixed_dictionaries(
    {'what': st.just('loss'), 'value': FLOATS, 'mean': FLOATS}
)


def maybe(values):
    return st.none() | values


RECORDS_OF_KIND = {
    'update': st.builds(
        GuardEvent,
        st.sampled_from(Action),
        st.sampled_from(Cause),
        COUNTS,
        loss=FLOATS,
        losses=st.dictionaries(TEXTS, FLOATS, max_size=2),
        lr=st.lists(FLOATS, max_size=2).map(tuple),
        loss_scale=maybe(
            st.fixed_dictionaries({'before': FLOATS, 'after': FLOATS})
        ),
        params=TENSORS,
        samples=NAMES,
        inputs=RANGES,
        since=maybe(COUNTS),
        spike=maybe(SPIKES),
        run=TEXTS,
    ),
    'autopsy': st.builds(
        Autopsy,
        TEXTS,
        phase=st.sampled_from(['', 'input', 'forward']),
        output_absmax=FLOATS,
        batch_rows=RANKS,
        samples=NAMES,
        fp32_is_finite=maybe(st.booleans()),
        outputs=RANGES,
        is_pole=maybe(st.booleans()),
        operands=st.lists(FLOATS, max_size=2).map(tuple),
        keys=NAMES,
        tried=st.dictionaries(TEXTS, st.booleans(), max_size=2),
    ),
    'start': st.builds(
        StartRow,
        *(TEXTS, COUNTS, COUNTS, maybe(COUNTS)),
        versions=st.dictionaries(TEXTS, TEXTS, max_size=2),
        guards=RANGES,
        unguarded=st.dictionaries(TEXTS, TEXTS, max_size=2),
        process=maybe(st.dictionaries(TEXTS, COUNTS, max_size=2)),
    ),
    'input': st.builds(
        InputRow,
        *(TEXTS, TEXTS, COUNTS, maybe(COUNTS), RANKS, COUNTS, NAMES),
        keys=st.dictionaries(TEXTS, NAMES, max_size=2),
    ),
    'dump': st.builds(
        DumpRow, TEXTS, COUNTS, TEXTS, COUNTS, NAMES, maybe(TEXTS)
    ),
    'remedy': st.builds(RemedyRow, TEXTS, TEXTS, TEXTS, TEXTS, maybe(FLOATS)),
    'rollback': st.builds(
        RollbackRow, *(TEXTS, COUNTS, COUNTS, TEXTS, COUNTS, FLOATS, FLOATS)
    ),
    'audit': st.builds(
        AuditRow,
        *(TEXTS, TEXTS, COUNTS, COUNTS, COUNTS, RANKS, NAMES, COUNTS),
        *(TENSORS, maybe(TEXTS)),
    ),
    'alert': st.builds(
        AlertRow,
        *(TEXTS, TEXTS, COUNTS, COUNTS),
        st.sampled_from(list(SENTENCES)),
        *(TEXTS, FLOATS, FLOATS, TEXTS, maybe(FLOATS), maybe(FLOATS)),
        cleared=maybe(COUNTS),
    ),
    'bypass': st.builds(BypassRow, maybe(COUNTS), TEXTS, st.booleans(), TEXTS),
    'halt': st.builds(HaltRow, TEXTS, COUNTS, TEXTS, TEXTS),
    'end': st.builds(EndRow, TEXTS, maybe(COUNTS), TEXTS, *[LOSSES] * 2),
}


# After 'schema' and 'kind', in the order in which they stand in the file;
# the keys of 'update' are pinned with the public surface.
KEYS = {
    'start': 'run attempt iter max_iters versions guards unguarded launcher '
    'ranks ranks_per_node lr_factor process loaded loaded_bad',
    'autopsy': 'id phase module module_type method op source dtype '
    'input_absmax output_absmax dtype_max batch_rows samples rank repeats '
    'exact fp32_is_finite remedy outputs is_pole operands '
    'num_samples keys tried mask derivative huge_weight',
    'dump': 'id rank path bytes needs checkpoint remarks',
    'remedy': 'id remedy module config value',
    'input': 'id action iter since ranks num_samples samples keys',
    'rollback': 'id iter to path num_rollbacks lr_factor loss_scale evidence',
    'audit': 'id run attempt iter epoch ranks where num_bad tensors '
    'checkpoint',
    'alert': 'id run attempt iter rule module value limit dtype doubles left '
    'op source most loss first_loss first loss_scale lr advice config acted '
    'cleared',
    'bypass': 'iter optimizer is_guarded message',
    'halt': 'id iter story cause',
    'end': 'how iter error first_losses last_losses bad_params bad_inputs',
}


def test_each_kind_is_tested():
    assert set(RECORDS_OF_KIND) == set(RECORDS)


@pytest.mark.parametrize('kind', KEYS)
def test_keys_of_a_row(kind):
    keys = {'since': 1} if kind == 'input' else {}
    row = RECORDS[kind](**keys).to_row()
    assert list(row) == ['schema', 'kind', *KEYS[kind].split()]


@pytest.mark.parametrize('kind', RECORDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_round_trip(kind, data):
    """A record survives as a row for hooks and as a line of the file."""
    record = data.draw(RECORDS_OF_KIND[kind])
    row = record.to_row()
    assert (row['schema'], row['kind']) == (1, kind)
    again = (
        type(record).from_row(row),
        record_of(row),
        record_of(json.loads(to_json(row))),
    )
    # As tuples: from Python 3.13 on, records with the same NaN differ.
    for other in again:
        assert type(other) is type(record)
        assert astuple(other) == astuple(record)


@pytest.mark.parametrize('kind', RECORDS)
def test_unknown_keys_and_kinds_of_values_do_no_harm(kind):
    """A bad value of a row does not keep the rest from being read."""
    smallest = {
        'update': {'action': 'skip', 'cause': 'spike', 'iter': 1},
        'dump': {'path': 'x.pt'},
        'remedy': {'module': 'head'},
        'rollback': {'to': 3},
        'audit': {'num_bad': 1},
        'input': {'action': 'reject'},
        'alert': {'iter': 1, 'rule': 'headroom'},
        'bypass': {'message': 'NO'},
        'halt': {'story': 'over'},
        'end': {'how': 'finished'},
    }.get(kind, {})
    row = {'kind': kind, 'from_tomorrow': [1], **smallest}
    record = record_of(row)
    assert type(record) is RECORDS[kind]
    for key in record.to_row():
        if key in ('schema', 'kind', *smallest):
            continue
        for odd in (None, 'odd', [None], {'a': None}, -1.5, True, 10**400):
            odd_row = {**row, key: odd}
            assert type(record_of(odd_row)) is RECORDS[kind]
            assert sentence_of(odd_row)
    for key in smallest:
        for odd in (None, [], {}):
            odd_row = {**row, key: odd}
            assert record_of(odd_row) == OtherRow('', odd_row)
        del row[key]
        assert record_of(row) == OtherRow('', row)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | COUNTS | st.just(10**400) | FLOATS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize('kind', RECORDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_row_raises(kind, data):
    keys = list(data.draw(RECORDS_OF_KIND[kind]).to_row())
    changes = st.dictionaries(st.sampled_from(keys), JSON_VALUES, max_size=3)
    row = {**data.draw(RECORDS_OF_KIND[kind]).to_row(), **data.draw(changes)}
    assert isinstance(sentence_of(row), str)


def test_an_unknown_kind_is_kept():
    row = {'schema': 9, 'kind': 'mystery', 'id': 'a-1', 'what': math.nan}
    record = record_of(row)
    assert record.to_row() == row
    assert record.id == 'a-1'
    assert record.sentence() == '{"what": "nan"}'


def test_an_input_row_has_since_only_where_it_covers_an_interval():
    assert 'since' not in InputRow('a', 'reject', 3).to_row()
    assert list(InputRow('a', 'sanitize', 9, 1).to_row())[4:6] == [
        'iter',
        'since',
    ]


def test_numbers_that_json_lacks():
    values = {'a': [math.nan, math.inf, (-math.inf,)], 'b': {1: 'nan'}, 'c': 2}
    text = {'a': ['nan', 'inf', ['-inf']], 'b': {'1': 'nan'}, 'c': 2}
    assert to_jsonable(values) == text
    assert parse_numbers(text) == {
        'a': [math.nan, math.inf, [-math.inf]],
        'b': {'1': math.nan},
        'c': 2,
    }
    assert parse_number('none') == 'none'
