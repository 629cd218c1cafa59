"""The summary of rows: counts, culprits, and the rows that are kept."""

import random
from collections import Counter

from event_rows import (
    autopsy,
    bad_input,
    dump,
    remedy,
    rollback,
    routine,
    start,
    update,
)

from mmnanguard.report.summarize import summarize


def names_of(culprits, field='count'):
    return {culprit.name: getattr(culprit, field) for culprit in culprits}


def test_counts():
    rows = [
        start(),
        *(routine(i) for i in (1, 2)),
        *(update(i, name='head.weight') for i in (10, 12)),
        update(20, 'loss_nonfinite', name='head.weight'),
        update(30, action='step', micro_batches=dict(total=4, left_out=[{}])),
        update(40, 'spike', action='step', spike=None),
        start(35, attempt=2, max_iters=50),
    ]
    summary = summarize(rows)
    assert summary.num_rows == len(rows)
    assert summary.num_kinds == dict(start=2, update=7)
    assert summary.causes == dict(
        grad_nonfinite=3, scale_overflow=2, loss_nonfinite=1, spike=1
    )
    assert summary.actions == dict(skip=5, step=2)
    assert list(summary.iters['grad_nonfinite']) == [10, 12, 30]
    assert (summary.num_skipped, summary.num_left_out) == (3, 1)
    assert [(e.first, e.last, e.count) for e in summary.episodes] == [
        (10, 20, 3)
    ]
    assert (summary.run, summary.max_iters) == ('a', 50)
    assert summary.last_iter == 40
    assert summarize(rows, 45).last_iter == 45
    # Of a loss that is not finite the first gradient tells nothing.
    (head,) = summary.parameters
    assert (head.name, head.count, head.num_routine) == ('head.weight', 2, 2)
    assert (head.first, head.last) == (10, 12)


def test_episodes_end_after_200_quiet_iterations():
    iters = (1, 201, 402, 403)
    episodes = summarize(update(i) for i in iters).episodes
    assert [(e.first, e.last, e.count) for e in episodes] == [
        (1, 201, 2),
        (402, 403, 2),
    ]


def test_modules_are_those_of_autopsies():
    rows = [
        *(update(1), autopsy(1, 'neck')),
        *(update(5), autopsy(5, 'head'), autopsy(5, 'head', 'backward')),
        *(update(9), autopsy(9, '', module_type='Net')),
        autopsy(9, 'head', '', repeats=False),
        autopsy(9, '', 'input', samples=('a.jpg',)),
    ]
    modules = summarize(rows).modules
    assert names_of(modules) == dict(head=2, neck=1, Net=1)
    assert [module.first for module in modules] == [5, 1, 9]


def test_samples_that_were_named_come_first():
    batch = tuple(f'{number}.jpg' for number in range(8))
    rows = [
        update(1, 'input_nonfinite', samples=batch),
        bad_input(1, '7.jpg'),
        *(update(i, samples=(*batch[:2], f'x{i}')) for i in (2, 3)),
        update(4, samples=('1.jpg',)),
        routine(5, samples=('9.jpg',)),
        routine(6, samples=('9.jpg',)),
    ]
    summary = summarize(rows)
    assert [
        (sample.name, sample.count, sample.num_batches)
        for sample in summary.samples
    ] == [('7.jpg', 1, 1), ('1.jpg', 0, 4), ('0.jpg', 0, 3)]
    assert summary.num_with_samples == 4


def test_rows_are_joined_to_their_iteration():
    rows = [
        dump(7),  # before the update that it is about
        update(7),
        *(autopsy(7), remedy(7), rollback(7)),
        dict(kind='mystery', id='a-8'),
    ]
    events = summarize(rows).events
    assert [(row['kind'], row['iter']) for row in events] == [
        *((kind, 7) for kind in ('dump', 'update', 'autopsy', 'remedy')),
        ('rollback', 7),
        ('mystery', None),
    ]
    assert [row['place'] for row in events] == [1, 2, 3, 4, 5, 6]


def test_of_many_some_of_each_sort_are_kept():
    rng = random.Random(0)
    causes = ['scale_overflow'] * 97 + ['grad_nonfinite'] * 3
    rows = [
        update(i, rng.choice(causes), f'p{rng.randrange(20)}')
        for i in range(1, 5001)
    ]
    rows[700] = update(701, 'loss_nonfinite')
    rows[701:701] = [autopsy(701), remedy(701)]
    whole, some = summarize(rows), summarize(rows, max_kept=300)
    assert len(whole.events) < 2100
    assert 150 < len(some.events) < 400
    for summary in (whole, some):
        sorts = {
            (row['kind'], row.get('cause'), row.get('params', [{}])[:1] != [])
            for row in summary.events
        }
        assert ('autopsy', None, True) in sorts
        assert ('remedy', None, True) in sorts
        assert ('update', 'loss_nonfinite', False) in sorts
        # Rare ones whole, frequent ones as many as of the others.
        kept = Counter(
            row['params'][0]['name']
            for row in summary.events
            if row.get('cause') == 'scale_overflow'
        )
        assert len(kept) == 20
        assert max(kept.values()) <= 2 * min(kept.values()) + 2
        places = [row['place'] for row in summary.events]
        assert places == sorted(set(places))
    assert whole.causes == some.causes
    assert sum(whole.causes.values()) == 5000
