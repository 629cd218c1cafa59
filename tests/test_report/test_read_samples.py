"""The samples of the monitor are read, whatever their files hold."""

import math

from event_rows import header, sample, start, write_events, write_samples

from mmnanguard.report import load_run


def report_of(folder, samples):
    write_events(folder / '1', [start()])
    write_samples(folder / '1', samples)
    return load_run(str(folder))


def curves(samples):
    """Return the half and the wide outputs, as dicts of the points."""
    return [
        {
            name: dict(zip(curve.iters, curve.values))
            for name, curve in group.items()
        }
        for group in (samples.half, samples.wide)
    ]


def test_columns_of_several_headers(tmp_path):
    rows = [
        *(header('a'), sample(1, [3], [0])),
        *(header('a', 'b'), sample(5, [4, 0], [1])),
        *(header('b', 'a'), sample(9, [1, 2], [0])),
    ]
    half, wide = curves(report_of(tmp_path, rows).samples)
    assert half == {'a': {1: 8.0}, 'b': {5: 1.0, 9: 2.0}}
    assert wide == {'a': {5: 16.0, 9: 4.0}}


def test_a_module_that_overflowed_or_did_not_run(tmp_path):
    rows = [header('a', 'b'), sample(1, ['inf', None], [0, 1])]
    half, wide = curves(report_of(tmp_path, rows).samples)
    assert half == {'a': {1: math.inf}}
    assert wide == {}


def test_a_later_attempt_replaces_the_samples_of_an_earlier_one(tmp_path):
    write_events(tmp_path / '1', [start()])
    write_events(tmp_path / '2', [start(5, attempt=2)])
    rows = [header('a'), *(sample(i, [i], [0]) for i in (1, 4, 5, 10))]
    write_samples(tmp_path / '1', rows)
    rows = [header('b', 'a'), sample(6, [0, 3], [0, 1])]
    write_samples(tmp_path / '2', rows)
    report = load_run(str(tmp_path))
    assert list(report.samples.iters) == [1, 4, 6]
    half, _ = curves(report.samples)
    assert half == {'a': {1: 2.0, 4: 16.0, 6: 8.0}, 'b': {6: 1.0}}
    assert report.summary.last_iter == 6


def test_a_module_that_only_replaced_samples_had(tmp_path):
    write_samples(tmp_path / '1', [header('old'), sample(4, [5], [0])])
    write_events(tmp_path / '2', [start(attempt=2)])
    write_samples(tmp_path / '2', [header('new'), sample(1, [3], [0])])
    report = report_of(tmp_path, [])
    assert list(report.samples.half) == ['new']
    assert "('new', iteration 1)" in report.margins


def test_an_odd_row_costs_itself(tmp_path, caplog):
    rows = [
        sample(1, [3], [0], logits=5.0),  # before any header
        dict(schema=1, kind='header', modules=None),
        *(header('a', 'b'), sample(2, [3, 4], [0])),
        *([], None, dict(iter='x'), dict(iter=-1), dict(outputs=[1])),
        dict(iter=3, outputs=7, float16='x', update_ratio=[1], lr='x'),
        sample(4, [True, 'x', 9, 9], [-1, 'x', 2**70, 1]),
        sample(5, [1e6, {}], None, logits='inf', update_ratio='nan'),
        dict(schema=9, kind='mystery', iter=6, outputs=[1, 1]),
        sample(7, [3], [0], new=1, update_ratio=0.5),
    ]
    write_events(tmp_path / '1', [start()])
    path = write_samples(tmp_path / '1', rows)
    with path.open('ab') as file:
        file.write(b'{"iter": 8, "outputs": [1, \xc3')
    samples = load_run(str(tmp_path)).samples
    assert list(samples.iters) == [1, 2, 3, 4, 5, 7]
    half, wide = curves(samples)
    assert half['a'] == {2: 8.0, 7: 8.0}
    assert wide['b'] == {2: 16.0}
    assert samples.numbers['logits'].values[:2].tolist() == [5.0, math.inf]
    assert samples.numbers['update_ratio'].values[-1] == 0.5
    assert 'half-written or damaged' in caplog.text
