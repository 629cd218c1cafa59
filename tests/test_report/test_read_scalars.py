"""The curves of several attempts are joined to those of one run."""

import logging
import math

import pytest
from event_rows import start, write_events, write_scalars

from mmnanguard.report.read_events import find_parts
from mmnanguard.report.read_scalars import panel_of, read_scalars


def logged(*iters, loss=None):
    return [dict(iter=i, step=i, loss=loss or i / 10, time=0.1) for i in iters]


def write(work_dir, folders):
    for name, (rows, scalars) in folders.items():
        write_events(work_dir / name, rows)
        if scalars is not None:
            write_scalars(work_dir / name, scalars)


def curve(work_dir, key='loss', **keys):
    curves = read_scalars(find_parts(str(work_dir), **keys))
    return dict(zip(curves[key].iters, curves[key].values))


TABLE = {
    'one attempt': ({'1': ([start()], logged(10, 20))}, {10: 1, 20: 2}),
    'a later one replaces': (
        {
            '1': ([start()], logged(10, 20, 30)),
            '2': ([start(21, 2)], logged(30, 40, loss=9)),
        },
        {10: 1, 20: 2, 30: 9, 40: 9},
    ),
    'a later one has logged nothing yet': (
        {'1': ([start()], logged(10, 20, 30)), '2': ([start(11, 2)], None)},
        {10: 1},
    ),
    'back from the third to before the second': (
        {
            '1': ([start()], logged(10, 20)),
            '2': ([start(21, 2)], logged(30, 40)),
            '3': ([start(11, 3)], logged(20, loss=7)),
        },
        {10: 1, 20: 7},
    ),
    'two attempts in one folder': (
        {
            '1': (
                [start(), start(11, 2)],
                [*logged(10, 20, 30), *logged(20, loss=5)],
            )
        },
        {10: 1, 20: 5},
    ),
    'a start that a full disk lost': (
        {
            '1': ([start()], logged(10)),
            '2': ([dict(kind='x', run='a', attempt=2)], logged(20)),
        },
        {10: 1, 20: 2},
    ),
    'another run in the same work dir': (
        {'1': ([start(run='b')], logged(10)), '2': ([start()], logged(20))},
        {20: 2},
    ),
}


@pytest.mark.parametrize(
    ('folders', 'expected'), TABLE.values(), ids=TABLE.keys()
)
def test_attempts_are_one(tmp_path, folders, expected):
    write(tmp_path, folders)
    assert curve(tmp_path) == expected


def test_what_mmengine_writes(tmp_path):
    """MMEngine writes bare NaNs, validations, several optimizers and values
    that are no numbers.
    """
    rows = [
        {'lr': 0.1, 'loss': math.nan, 'grad_norm': 2.0, 'iter': 10},
        {'accuracy': 98.0, 'time': 1.0, 'step': 1, 'loss': 9.0},
        # A hook has given it to the visualizer.
        {'stability/update_ratio': 0.1, 'step': 11},
        {
            'generator.lr': 0.1,
            'loss_gen': 1.0,
            'guard/generator/amp_scale': 512.0,
            'guard/skipped': 1,
            'loss': 'text',
            'data_time': 1.0,
            'memory': 100,
            'iter': 20,
        },
    ]
    write(tmp_path, {'1': ([start()], rows)})
    curves = read_scalars(find_parts(str(tmp_path)))
    assert {key: list(curve.iters) for key, curve in curves.items()} == {
        'lr': [10],
        'loss': [10],
        'grad_norm': [10],
        'generator.lr': [20],
        'loss_gen': [20],
        'guard/generator/amp_scale': [20],
        'val/accuracy': [10],
        'val/loss': [10],
        'step of val': [10],
    }
    assert math.isnan(curves['loss'].values[0])


def test_a_file_with_another_name(tmp_path):
    """``scalar_save_file`` may be set; LoggerHook names its copy by folder."""
    write(tmp_path, {'20260101_000000': ([start()], logged(10))})
    path = next(tmp_path.glob('*/vis_data/scalars.json'))
    path.rename(path.with_name('20260101_000000.json'))
    assert curve(tmp_path) == {10: 1}


def test_damaged_lines_are_left_out(tmp_path, caplog):
    write(tmp_path, {'1': ([start()], logged(10, 20))})
    path = next(tmp_path.glob('*/vis_data/scalars.json'))
    path.write_bytes(b'\xff\n[1]\n' + path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING, 'mmnanguard'):
        assert curve(tmp_path) == {10: 1}
    assert 'damaged are left out: 3' in caplog.text


@pytest.mark.parametrize(
    ('key', 'panel'),
    [
        ('loss', 'loss'),
        ('decode.loss_ce', 'loss'),
        ('grad_norm', 'grad_norm'),
        ('discriminator.grad_norm', 'grad_norm'),
        ('guard/amp_scale', 'loss_scale'),
        ('lr', 'lr'),
        ('base_lr', ''),
        ('loss_scale', ''),
        ('guard/lr_factor', ''),
        ('time', ''),
    ],
)
def test_panels(key, panel):
    assert panel_of(key) == panel
