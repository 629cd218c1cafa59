"""Bad inputs on one of two ranks, or on both: all ranks act alike, and the
samples are named whichever rank had them.
"""

import json

import pytest
from ranks import launch

# The even samples are rank 0's, the odd ones rank 1's, eight an iteration.
REJECT, HALT = dict(action='reject'), dict(action='halt')
SANITIZE = dict(action='sanitize', interval=2)
WINDOWS = dict(accumulation=2)
SITUATIONS = {
    'reject 0': dict(hook=REJECT, bad=[20]),
    'reject 1': dict(hook=REJECT, bad=[21]),
    'reject both': dict(hook=REJECT, bad=[18, 21, 23]),
    'reject unnamed': dict(hook=REJECT, bad=[20, 21], named=False),
    'oracle': dict(leave_out=[3]),
    # The first micro-batch of the second window on rank 1, the second one
    # on rank 0.
    'windows 1': dict(WINDOWS, hook=REJECT, bad=[21]),
    'windows both': dict(WINDOWS, hook=REJECT, bad=[21, 28]),
    'windows oracle': dict(WINDOWS, leave_out=[3, 4]),
    'halt 1': dict(hook=HALT, bad=[21]),
    'halt both': dict(hook=HALT, bad=[18, 21]),
    'halt oracle': dict(leave_out=[3, 4, 5, 6]),
    # On rank 1 in the first interval, on none in the second, on both in the
    # third.
    'sanitize': dict(hook=SANITIZE, bad=[1, 11, 40, 41, 47]),
    'sanitize oracle': dict(bad=[1, 11, 40, 41, 47], value=0.0),
    'clean': dict(hook=REJECT),
    'clean sanitize': dict(hook=SANITIZE),
    'clean oracle': dict(),
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp('ranks')
    (path / 'situations.json').write_text(json.dumps(SITUATIONS))
    launch('input_ranks_job.py', path)
    return json.loads((path / 'results.json').read_text())


def name(index):
    return f'train/{index:06d}.jpg'


@pytest.mark.parametrize(
    ('situation', 'iter_', 'ranks', 'samples'),
    [
        ('reject 0', 3, [0], [20]),
        ('reject 1', 3, [1], [21]),
        ('reject both', 3, [0, 1], [18, 21, 23]),
        ('windows 1', 4, [1], [21]),
        ('windows both', 4, [0, 1], [28, 21]),
        ('halt 1', 3, [1], [21]),
        ('halt both', 3, [0, 1], [18, 21]),
    ],
)
def test_one_row_names_the_samples_of_all_ranks(
    results, situation, iter_, ranks, samples
):
    result = results[situation]
    (update,) = result['updates']
    assert (update['iter'], update['cause']) == (iter_, 'input_nonfinite')
    assert update['ranks'] == ranks
    (row,) = result['inputs']
    assert row['id'] == update['id']
    assert row['action'] == situation.split()[0].replace('windows', 'reject')
    assert row['ranks'] == ranks
    assert row['samples'] == list(map(name, samples))
    assert row['keys'] == {'inputs': list(map(name, samples))}
    assert row['num_samples'] == len(samples)


def test_one_console_line(results):
    (log,) = results['reject both']['log']
    assert log.count('input is not finite in') == 1
    assert (
        'Iter 3: input is not finite in 3 samples (inputs) on ranks 0, 1: '
        f'{name(18)}, {name(21)}, {name(23)}\n'
    ) in log
    (log,) = results['reject 1']['log']
    assert f'in 1 sample (inputs) on rank 1: {name(21)}\n' in log


def test_samples_without_names_tell_their_rank(results):
    (row,) = results['reject unnamed']['inputs']
    assert row['samples'] == [
        'batch 2 of rank 0, row 2',
        'batch 2 of rank 1, row 2',
    ]


@pytest.mark.parametrize('situation', ['halt 1', 'halt both'])
def test_all_ranks_halt_with_the_same_story(results, situation):
    first, second = results[situation]['halted']
    assert first == second
    assert name(21) in first
    assert results['reject 1']['halted'] == ['', '']


@pytest.mark.parametrize(
    ('situation', 'oracle'),
    [
        ('reject 0', 'oracle'),
        ('reject 1', 'oracle'),
        ('reject both', 'oracle'),
        ('windows 1', 'windows oracle'),
        ('windows both', 'windows oracle'),
        ('halt 1', 'halt oracle'),
        ('sanitize', 'sanitize oracle'),
        ('clean', 'clean oracle'),
        ('clean sanitize', 'clean oracle'),
    ],
)
def test_ranks_end_as_one_another_and_without_it(results, situation, oracle):
    first, second = results[situation]['tensors']
    for key, value in first.items():
        if 'running' not in key:  # each rank's own
            assert str(value) == str(second[key]), key
    assert str(results[situation]['tensors']) == str(
        results[oracle]['tensors']
    )
    assert 'nan' not in str(first)


def test_sanitize_tells_what_all_ranks_mended(results):
    result = results['sanitize']
    assert result['updates'] == []
    first, last = result['inputs']
    assert (first['since'], first['iter'], first['ranks']) == (1, 2, [1])
    assert first['samples'] == [name(1), name(11)]
    assert (last['since'], last['iter'], last['ranks']) == (5, 6, [0, 1])
    assert last['samples'] == [name(40), name(41), name(47)]
    (log,) = result['log']
    assert log.count('input was not finite in') == 2


def test_clean_runs_tell_nothing(results):
    assert results['clean']['inputs'] == []
    assert results['clean sanitize']['inputs'] == []
