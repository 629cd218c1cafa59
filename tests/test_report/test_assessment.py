"""A run is assessed by its rows: a table of rows and the sentences on them."""

import pytest
from event_rows import (
    audit,
    autopsy,
    bad_input,
    dump,
    halt,
    remedy,
    rollback,
    routine,
    start,
    update,
)

from mmnanguard.core.launch import Launch
from mmnanguard.report.assessment import judge
from mmnanguard.report.summarize import summarize


def judged(rows, last_iter=1000):
    return judge(summarize([start(), *rows], last_iter))


HEALTHY = {
    'nothing': ([], 'healthy: 1,000 iterations, none rejected'),
    'routine overflows': (
        [routine(i) for i in (1, 2, 3, 4, 5, 200, 400)],
        'healthy: 7 routine overflows in the first 400 iterations',
    ),
    'one routine overflow': (
        [routine(1)],
        'healthy: 1 routine overflow in the first 1 iterations',
    ),
    'a skip': (
        [update(300)],
        'healthy: 1 update rejected at iteration 300 (grad_nonfinite); '
        'training went on',
    ),
    'skips of different parameters, far apart': (
        [update(i, name=f'layer.{i}') for i in (100, 300, 500, 700)],
        'healthy: 4 updates rejected now and then (grad_nonfinite), the last '
        'at iteration 700; training went on',
    ),
    'a streak that it got over': (
        [update(i, consecutive_skips=i - 300) for i in range(301, 305)],
        'healthy: 4 updates rejected now and then (grad_nonfinite), the last '
        'at iteration 304; training went on',
    ),
    'cured by a remedy': (
        [*(update(i, name='head.weight') for i in range(1, 9)), remedy(8)],
        'recovered: 8 updates rejected now and then (grad_nonfinite), the '
        "last at iteration 8, cured since: 'head' in float32; next: make the "
        "remedy permanent: 'head' in float32",
    ),
    'cured by two remedies': (
        [update(7), remedy(7, 'neck'), update(8), remedy(8, 'head')],
        'recovered: 2 updates rejected now and then (grad_nonfinite), the '
        "last at iteration 8, cured since: 'neck', 'head' in float32; next: "
        "make the remedy permanent: 'neck', 'head' in float32",
    ),
    'a skip at the end': (
        [update(1000)],
        'healthy: 1 update rejected at iteration 1,000 (grad_nonfinite)',
    ),
    'spikes that were committed': (
        [update(i, 'spike', action='step') for i in range(1, 31)],
        'healthy: 30 updates committed with spikes clipped or micro-batches '
        'left out',
    ),
    'a halted run that was resumed': (
        [update(300), halt(300), start(301, attempt=2)],
        'recovered: 1 update rejected at iteration 300 (grad_nonfinite); '
        'training went on',
    ),
    'a bad sample': (
        [update(30, 'input_nonfinite'), bad_input(30, 'a.jpg', 'b.jpg')],
        'healthy: 1 update rejected at iteration 30 (input_nonfinite); '
        "training went on; next: leave out samples 'a.jpg', 'b.jpg', or mend "
        'them',
    ),
}

REPEATED = [update(i, name='neck.bias') for i in range(100, 600, 100)]
STREAK = [update(i, consecutive_skips=i - 990) for i in range(991, 1001)]
SICK = {
    'halted': (
        [
            *(update(i, name='head.weight') for i in range(895, 900)),
            update(900, action='halt', consecutive_skips=20, name='head.bias'),
            *(dump(900), halt(900)),
        ],
        900,
        'sick since iteration 895: halted at iteration 900 after 20 skips in '
        "a row (grad_nonfinite); blamed: 'head.weight', 5 times; next: "
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'halted, with an autopsy': (
        [
            update(900, 'loss_nonfinite', consecutive_skips=20),
            *(autopsy(900, 'neck', remedy='fp32'), halt(900)),
            autopsy(900, remedy='fp32'),
        ],
        900,
        'sick since iteration 900: halted at iteration 900 after 20 skips in '
        "a row (loss_nonfinite); culprit: 'neck' (Linear, aten.mm, net.py:7) "
        "overflows in float16 in forward; next: run 'neck', 'head' in float32",
    ),
    'halted by a sample': (
        [
            update(7, 'input_nonfinite', action='halt'),
            *(bad_input(7, 'a.jpg', action='halt'), halt(7)),
        ],
        7,
        'sick since iteration 7: halted at iteration 7 (input_nonfinite); '
        "culprit: sample 'a.jpg'; next: leave out sample 'a.jpg', or mend it",
    ),
    'halted by an audit': (
        [update(3), audit(8), halt(8, 'a-8-audit.1')],
        8,
        'sick since iteration 8: halted at iteration 8 (weight_nonfinite); '
        'next: resume from the last clean checkpoint',
    ),
    'halted by an audit, no update was rejected': (
        [audit(8), halt(8, 'a-8-audit.1')],
        8,
        'sick since iteration 8: halted at iteration 8 (weight_nonfinite); '
        'next: resume from the last clean checkpoint',
    ),
    'halted anew after a resume': (
        [halt(300), start(301, attempt=2), update(400), halt(400)],
        400,
        'sick since iteration 400: halted at iteration 400 (grad_nonfinite); '
        'next: find the operation with mmnanguard.AutopsyHook',
    ),
    'all rejected at the end': (
        STREAK,
        1000,
        'sick since iteration 991: the last 10 updates were all rejected '
        '(grad_nonfinite); next: '
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'an audit that warns': (
        [audit(8)],
        1000,
        "sick since iteration 8: an audit found that 'head.weight' (weight) "
        'is NaN, 1 of 8; next: resume from the last clean checkpoint',
    ),
    'a rollback': (
        [
            *(update(i) for i in (600, 603)),
            update(610, 'divergence', action='rollback'),
            rollback(610),
        ],
        700,
        'sick since iteration 600: went back to an earlier state at iteration '
        '610 (divergence); next: lower the learning rate, lengthen warm-up, '
        'or clip',
    ),
    'rollbacks, one by an audit': (
        [
            *(update(610, action='rollback'), rollback(610)),
            *(audit(900), dict(rollback(900, num=2), id='a-900-audit.1')),
        ],
        1000,
        "sick since iteration 900: an audit found that 'head.weight' (weight) "
        'is NaN, 1 of 8; next: resume from the last clean checkpoint',
    ),
    'the same parameter again and again': (
        REPEATED,
        600,
        'sick since iteration 100: 5 updates were rejected for grad_nonfinite '
        "of 'neck.bias', the last at iteration 500; next: "
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'the same after a remedy of something else': (
        [*REPEATED, autopsy(100), remedy(200)],
        600,
        'sick since iteration 100: 5 updates were rejected for grad_nonfinite '
        "of 'neck.bias', the last at iteration 500; culprit: 'head' (Linear, "
        'aten.mm, net.py:7) overflows in float16 in forward; next: make the '
        "remedy permanent: 'head' in float32",
    ),
    'the same loss again and again, one sample in all of them': (
        [
            update(i, 'loss_nonfinite', samples=('x.jpg', f'{i}.jpg'))
            for i in range(100, 600, 100)
        ],
        600,
        'sick since iteration 100: 5 updates were rejected for '
        "loss_nonfinite, the last at iteration 500; suspect: sample 'x.jpg', "
        "in 5 of 5 rejected batches; next: look at sample 'x.jpg' first",
    ),
    'many at the end': (
        [update(i, name=f'p{i}') for i in range(850, 1000, 30)],
        1000,
        'sick since iteration 850: 5 of the last 200 updates were rejected, '
        'most often for grad_nonfinite; next: '
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'halted, one parameter': (
        [update(9, action='halt', name='head.bias'), halt(9)],
        9,
        'sick since iteration 9: halted at iteration 9 (grad_nonfinite); '
        "blamed: 'head.bias'; next: "
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'halted, without a loss scale': (
        [
            update(7),  # the run was resumed in another precision
            update(9, action='halt', name='head.bias', loss_scale=None),
            halt(9),
        ],
        9,
        'sick since iteration 7: halted at iteration 9 (grad_nonfinite); '
        "blamed: 'head.bias'; next: "
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'many of different parameters': (
        [update(i, name=f'p{i}') for i in range(100, 700, 60)],
        700,
        'sick since iteration 100: 10 updates were rejected, 1.7% of all '
        'since then; next: find the operation with mmnanguard.AutopsyHook',
    ),
}


@pytest.mark.parametrize(
    ('rows', 'expected'), HEALTHY.values(), ids=HEALTHY.keys()
)
def test_healthy(rows, expected):
    verdict = judged(rows)
    assert verdict.sentence == expected
    assert verdict.is_healthy
    assert verdict.badge.lower() == expected.partition(':')[0]
    assert verdict.since is None


@pytest.mark.parametrize(
    ('rows', 'last_iter', 'expected'), SICK.values(), ids=SICK.keys()
)
def test_sick(rows, last_iter, expected):
    verdict = judged(rows, last_iter)
    assert verdict.sentence == expected
    assert not verdict.is_healthy
    assert verdict.reasons
    assert verdict.steps


@pytest.mark.parametrize('num', [5, 4])
def test_long_ago(num):
    """A run is healthy again once fewer than 1 in 1,000 were rejected."""
    rows = [update(i, name='neck.bias') for i in range(1, num + 1)]
    assert (judged(rows, 5000).badge == 'Healthy') == (num < 5)
    assert judged(rows, 5001).badge == 'Healthy'


def test_what_to_do_next():
    rows = [update(9, action='halt', name='neck.bias'), dump(9, '/x y/d.pt')]
    *_, replay = judged([*rows, halt(9)], 9).steps
    assert replay.code == "python -m mmnanguard replay '/x y/d.pt'"
    *_, closer = judged([rows[0], halt(9)], 9).steps
    assert '--guard full' in closer.code
    (permanent,) = judged([update(9), autopsy(9), remedy(9)]).steps
    line = remedy(9)['config']
    assert permanent.code == Launch().train('--cfg-options', line)
    (leave_out,) = judged([bad_input(9, "it's.jpg")]).steps
    assert leave_out.code == (
        """printf '%s\\n' 'it'"'"'s.jpg' >> excluded_samples.txt && """
        'python -m mmnanguard train CONFIG --resume --exclude '
        'excluded_samples.txt'
    )
    # A row of a batch is no sample of the dataset, and a list has lines.
    for name in ('batch 3, row 1', 'a\nb'):
        (leave_out,) = judged([bad_input(9, name)]).steps
        assert leave_out.code == ''


@pytest.mark.parametrize(
    ('changes', 'optimizer', 'clips'),
    [
        ({}, 'default', True),
        ({'clip_coef': 0.5}, 'default', False),
        ({}, 'generator', False),
    ],
)
def test_the_command_does_what_the_text_says(changes, optimizer, clips):
    growth = dict(
        losses=(1.0, 9.0, 80.0, 700.0),
        grad_norms=(3.0, 30.0, 300.0, 3e3),
        **dict(lr=0.1, factor=700.0, usual_norm=2.5, **changes),
    )
    rows = []
    for skips in range(1, 12):
        row = update(500 + skips, 'loss_nonfinite', consecutive_skips=skips)
        rows.append(dict(row, optimizer=optimizer, growth=growth))
    step = judged(rows).steps[0]
    assert step.text.startswith('lower the learning rate')
    assert 'clip_grad' in step.detail
    assert '--lr-factor 0.1' in step.code
    assert ('clip_grad=dict(max_norm=2.5)' in step.code) is clips
    assert ('lowers the learning rate alone' in step.detail) is not clips


def test_samples_that_are_always_together_are_suspects_together():
    rows = [
        update(i, 'loss_nonfinite', samples=('d', 'a', f'{i}', 'c'))
        for i in range(100, 600, 100)
    ]
    assert "suspects: samples 'a', 'c' and 1 more" in judged(rows).sentence


def test_without_good_updates_no_sample_is_a_suspect():
    rows = [
        update(i, 'loss_nonfinite', samples=(str(i % 4), 'x', str(i)))
        for i in range(981, 1001)
    ]
    assert 'suspect' not in judged(rows).sentence


def test_a_cause_of_another_version():
    row = dict(update(9, action='halt'), cause='gremlins')
    verdict = judged([row, halt(9)], 9)
    assert verdict.sentence.startswith(
        'sick since iteration 9: halted at iteration 9 (gremlins)'
    )


@pytest.mark.parametrize('rest', [{}, {'iter': None}, {'iter': 5}])
@pytest.mark.parametrize('kind', ['update', 'halt', 'audit', 'rollback', 'x'])
def test_rows_that_lack_things(kind, rest):
    """Rows of another version or written by hand cause no traceback."""
    assert judged([dict(kind=kind, run='a', attempt=1, **rest)]).sentence


def test_commits_with_a_bad_loss_clear_the_samples():
    rows = []
    for iteration in range(10, 310, 100):
        name = f'{iteration}.jpg'
        rows += [
            update(iteration, 'loss_nonfinite', samples=(name, 'a.jpg')),
            autopsy(iteration, samples=(name,), num_samples=2),
        ]
    sentence = judged(rows).sentence
    assert 'leave out sample' in sentence
    # It is mended first.
    assert (
        'next: keep the input of aten.mm'
        in judged([dict(row, is_pole=True) for row in rows[:2]]).sentence
    )
    # The operation is bad for other samples as well.
    for iteration in range(20, 1000, 4):
        row = update(iteration, 'loss_nonfinite', action='step', counts=False)
        rows.append(row)
    rows.sort(key=lambda row: row['id'].rpartition('-')[2].zfill(5))
    assert 'leave out sample' not in judged(rows).sentence
