"""The curves show what was, on axes that can be read."""

from event_rows import start, write_events, write_scalars

from mmnanguard.report import load_run
from mmnanguard.report.figure import draw


def figure(folder, scalars, rows=()):
    write_events(folder / '1', [start(), *rows])
    write_scalars(
        folder / '1', [dict(row, iter=i) for i, row in enumerate(scalars, 1)]
    )
    return draw(load_run(str(folder)))


def curves(drawn):
    lines = [t for t in drawn['data'] if 'lines' in t.get('mode', '')]
    return {trace['name']: list(trace['y']) for trace in lines}


def test_the_learning_rate_that_was_used(tmp_path):
    """A rollback lowers it behind the schedule's back."""
    factor = {'guard/lr_factor': 0.5}
    scalars = [
        *(dict(lr=1.0), dict(lr=2.0), dict(lr=4.0, **factor)),
        *(dict(lr=4.0), dict(lr=8.0, **{'guard/lr_factor': 1.0})),
    ]
    drawn = figure(tmp_path, scalars)
    assert curves(drawn) == {'lr x guard/lr_factor': [1, 2, 2, 2, 8]}
    assert all(trace['showlegend'] for trace in drawn['data'][:1])


def test_each_optimizer_has_its_factor(tmp_path):
    row = {'gen.lr': 1.0, 'disc.lr': 1.0, 'guard/gen/lr_factor': 0.1}
    drawn = figure(tmp_path, [row, row])
    assert curves(drawn) == {
        'gen.lr x guard/gen/lr_factor': [0.1, 0.1],
        'disc.lr': [1, 1],
    }
    assert [trace['showlegend'] for trace in drawn['data'][:2]] == [
        False,
        True,
    ]
