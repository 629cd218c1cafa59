"""Each kind of row in words, and its text to paste."""

import json
import re
from pathlib import Path

import pytest
from event_rows import (
    NAN,
    audit,
    autopsy,
    bad,
    bad_input,
    dump,
    halt,
    joined,
    remedy,
    rollback,
    routine,
    start,
    update,
)

import mmnanguard
from mmnanguard._support.console_line import WIDTH
from mmnanguard.core import Action, Cause, GuardEvent
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.rows.read_row import RECORDS, sentence_of
from mmnanguard.report.row_text import command_of

SPIKE = dict(what='grad_norm', value=9.0, limit=5.0, mean='nan')
SAID = {
    'update': (
        update(3, name='head.bias', samples=('a', 'b')),
        "gradient of 'head.bias' is NaN (1 of 8 tensors); update skipped, "
        'loss scale 1024 -> 512, 1 skip in a row; 2 samples, named in its row',
    ),
    'routine': (
        dict(routine(3), routine_overflows=2),
        "gradient of 'head.weight' is NaN (1 of 8 tensors); update skipped, "
        'loss scale 1024 -> 512, routine for a new scale, 2 so far',
    ),
    'one of several optimizers': (
        update(3, 'loss_nonfinite', optimizer='gen', loss=float('nan')),
        'loss is NaN, and so are gradients (1 of 8 tensors); update skipped, '
        'loss scale 1024 -> 512, 1 skip in a row',
    ),
    'spike': (
        dict(update(3, 'spike'), spike=SPIKE, loss_scale=None),
        'gradient norm 9 is a spike: the limit is 5; update skipped, 1 skip '
        'in a row',
    ),
    'start': (
        start(21, attempt=2),
        'attempt 2 starts at iteration 21 (torch 2.13.0)',
    ),
    'autopsy': (
        autopsy(3),
        "the batch made 'head' (Linear, aten.mm, net.py:7) overflow in "
        'float16 in forward: its input was up to 3e+04, the limit is '
        '6.55e+04; it happens again when replayed',
    ),
    'dump': (dump(3, '/x/d.pt'), 'dumped to /x/d.pt (1.0 MiB)'),
    'remedy': (remedy(3), "'head' runs in float32 from now on"),
    'rollback': (
        rollback(9, to=5),
        'went back to the state after iteration 5 (rollback 1); learning rate '
        'x 0.1, loss scale 512; data and schedule go on',
    ),
    'rollback from a file': (
        dict(rollback(9, to=5), path='iter_5.pth'),
        'went back to the state after iteration 5, from iter_5.pth (rollback '
        '1); learning rate x 0.1, loss scale 512; data and schedule go on',
    ),
    'audit': (
        dict(audit(3), num_bad=3, checkpoint='iter_3.pth'),
        "'head.weight' (weight) is NaN, 1 of 8, and 2 more in weights; "
        'iter_3.pth is not written',
    ),
    'halt': (halt(9), 'training halted at iteration 9\n  What to try: rest.'),
    'input': (
        bad_input(3, 'a', 'b', 'c', 'd'),
        'input is not finite in 4 samples (inputs): a, b, c and 1 more; the '
        'update was rejected',
    ),
    'mended input': (
        bad_input(50, 'a', action='sanitize', since=1),
        'input was not finite in 1 sample (inputs): a; mended and trained on '
        'since iteration 1',
    ),
    'another kind': (joined(3, 'mystery', what=7), '{"what": 7}'),
    'an update of another version': (
        dict(kind='update', id='a-1', action='dance', cause='gremlins'),
        '{"action": "dance", "cause": "gremlins"}',
    ),
    'an audit that lacks things': (
        dict(kind='audit', iter=3, where=['ema']),
        '{"where": ["ema"]}',
    ),
}


@pytest.mark.parametrize(('row', 'said'), SAID.values(), ids=SAID.keys())
def test_tell(row, said):
    assert sentence_of(row) == said


@pytest.mark.parametrize('action', Action)
@pytest.mark.parametrize('cause', Cause)
def test_an_update_is_told_as_the_console_told_it(cause, action):
    event = GuardEvent(
        action,
        cause,
        iter=250,
        loss=NAN,
        params=(bad('head.weight', 'inf'), bad('head.bias')),
        num_bad_params=2,
        num_params=8,
        samples=('a.jpg', 'b.jpg'),
        loss_scale={'before': 4.0, 'after': 2.0},
        spike=dict(what='loss', value=9.0, limit=5.0, mean=NAN),
    )
    row = json.loads(to_json(event.to_row()))
    full_line = f'Iter 250: {sentence_of(row)}'
    # A line that would be too long has shorter words.
    if len(full_line) <= WIDTH:
        assert full_line == event.line()
    else:
        assert len(event.line()) <= WIDTH
        assert event.line().startswith('Iter 250: ')


def test_hooks_write_records_only():
    """A row that is put together by hand has no sentence."""
    folder = Path(mmnanguard.__file__).parent
    kinds = '|'.join(RECORDS)
    by_hand = re.compile(rf"""["']kind["']: ["']({kinds})|kind=["']""")
    for path in folder.glob('hooks/**/*.py'):
        assert not by_hand.search(path.read_text()), path


def test_commands():
    assert command_of(dump(3, "/x/it's.pt")) == (
        """python -m mmnanguard replay '/x/it'"'"'s.pt'"""
    )
    needy = dump(3, '/x/d.pt', needs=('config', 'checkpoint'))
    replay = 'python -m mmnanguard replay /x/d.pt --config FILE --checkpoint'
    assert command_of(needy) == f'{replay} FILE'
    needy['checkpoint'] = '/x y/iter_2.pth'
    assert command_of(needy) == f"{replay} '/x y/iter_2.pth'"
    old = {key: needy[key] for key in ('kind', 'path')}
    assert command_of(old) == 'python -m mmnanguard replay /x/d.pt'
    assert command_of(remedy(3)).startswith('default_hooks=')
    assert command_of(update(3)) == ''
