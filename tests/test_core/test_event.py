import json
import math
import pickle

import pytest

from mmnanguard.core import Action, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.json_numbers import to_json

WEIGHT = 'backbone.patch_embed.projection.weight'
BAD = BadTensor(WEIGHT, 'gradient', 'nan', 12, 4704, -0.03, 0.02, 'float32')


def make_event(**changes):
    event = GuardEvent(
        action=Action.SKIP,
        cause=Cause.GRAD_NONFINITE,
        iter=27295,
        loss=2.035,
        grad_norm=math.nan,
        loss_scale={'before': 1024.0, 'after': 512.0},
        num_bad_params=1,
        num_params=161,
        params=(BAD,),
        consecutive_skips=1,
    )
    return event.replace(**changes)


def test_the_line():
    assert make_event().line() == (
        f"Iter 27295: gradient of '{WEIGHT}' is NaN (1 of 161 tensors); "
        'update skipped, loss scale 1024 -> 512, 1 skip in a row'
    )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(loss_scale=None), ['update skipped, 1 skip in a row']),
        (
            dict(cause=Cause.SCALE_OVERFLOW, routine_overflows=3),
            ['routine for a new scale, 3 so far'],
        ),
        (
            dict(cause=Cause.LOSS_NONFINITE, loss=math.nan),
            ['loss is NaN, and so are gradients (1 of 161 tensors)'],
        ),
        (
            dict(cause=Cause.LOSS_NONFINITE, loss=math.inf, num_bad_params=0),
            ['loss is Inf while its gradients are finite'],
        ),
        (
            dict(cause=Cause.BUFFER_NONFINITE),
            [f"forward made buffer '{WEIGHT}' NaN"],
        ),
        (dict(cause=Cause.INPUT_NONFINITE), ['the input is not finite']),
        (
            dict(cause=Cause.NORM_OVERFLOW),
            ['overflows float32 with finite elements'],
        ),
        (
            dict(cause=Cause.WEIGHT_NONFINITE, action=Action.HALT),
            [f"weight '{WEIGHT}' is NaN", 'training halts'],
        ),
        (dict(consecutive_skips=2), ['2 skips in a row']),
        (
            dict(samples=('a.jpg',)),
            ["is NaN (1 of 161 tensors); sample 'a.jpg'; update"],
        ),
        # None of the two is known to be bad, so the line blames none.
        (
            dict(samples=('a.jpg', 'b.jpg'), loss_scale=None),
            ['skip in a row; 2 samples, named in its row'],
        ),
        (
            dict(samples=('a.jpg', 'b.jpg'), bad_samples=('b.jpg',)),
            ["is NaN (1 of 161 tensors); bad sample 'b.jpg'; update skipped"],
        ),
        (dict(optimizer='generator'), ['Iter 27295 (generator): ']),
        (dict(ranks=(1,)), ['Iter 27295 (rank 1): ']),
        (dict(ranks=(0, 1, 2)), ['Iter 27295 (ranks 0, 1 and 1 more): ']),
        (
            dict(ranks=(1,), optimizer='generator'),
            ['Iter 27295 (generator, rank 1): '],
        ),
        (
            dict(loss_scale={'before': 1.0, 'after': 1.0}),
            ['loss scale stays at 1'],
        ),
    ],
)
def test_the_line_says(changes, words):
    line = make_event(**changes).line()
    assert '\n' not in line
    for word in words:
        assert word in line


def test_row_is_strict_json():
    row = make_event(loss=math.inf, losses={'loss_a': -math.inf}).to_row()
    text = to_json(row)
    read = json.loads(text, parse_constant=pytest.fail)
    assert read['grad_norm'] == 'nan'
    assert read['loss'] == 'inf'
    assert read['losses'] == {'loss_a': '-inf'}
    assert read['action'] == 'skip'
    assert read['cause'] == 'grad_nonfinite'
    assert read['params'][0]['name'] == WEIGHT
    assert read['loss_scale'] == {'before': 1024.0, 'after': 512.0}
    assert (read['schema'], read['kind']) == (1, 'update')


def test_events_pickle_and_compare():
    event = make_event(grad_norm=math.inf)
    assert pickle.loads(pickle.dumps(event)) == event
