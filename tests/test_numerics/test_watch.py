"""The row of a bad update has the range of a watched tensor."""

import math

import pytest
import torch
from mmengine.registry import MODELS
from toys import ToyNet, guard_hooks, make_runner, read_rows, wrapper

from mmnanguard import watch
from mmnanguard.numerics.update.watch import forget_watched, read_watched


@pytest.fixture(autouse=True)
def forget():
    yield
    forget_watched()


@pytest.mark.parametrize(
    ('values', 'low', 'high', 'is_finite'),
    [
        ([1.0, 3.0, 2.0], 1.0, 3.0, True),
        ([1.0, math.inf], 1.0, math.inf, False),
        ([-math.inf, 0.0], -math.inf, 0.0, False),
    ],
)
def test_ranges(values, low, high, is_finite):
    tensor = torch.tensor(values)
    assert watch('scale', tensor) is tensor
    assert read_watched() == {
        'scale': dict(min=low, max=high, is_finite=is_finite)
    }


def test_nan_is_seen():
    watch('scale', torch.tensor([0.0, math.nan, 2.0]))
    seen = read_watched()['scale']
    assert math.isnan(seen['min'])
    assert not seen['is_finite']


def test_several_calls_are_one_range():
    for value in (1.0, 5.0, 3.0):
        watch('scale', torch.tensor([value]))
    watch('scale', torch.empty(0))
    assert read_watched()['scale']['max'] == 5.0
    assert read_watched()['scale']['min'] == 1.0


@MODELS.register_module()
class Watched(ToyNet):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        watch('pixels', torch.stack(list(inputs)))
        return super().forward(inputs, data_samples, mode)


def test_the_row_has_its_own_windows_range(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(accumulative_counts=2),
        model=dict(type='Watched'),
        default_hooks=guard_hooks(dict(iter=6, site='loss')),
    )
    runner.train()
    (row,) = read_rows(runner)
    window = [
        runner.train_dataloader.dataset[index]['inputs']
        for index in range(16, 24)
    ]
    assert row['watched']['pixels'] == dict(
        min=float(torch.stack(window).min()),
        max=float(torch.stack(window).max()),
        is_finite=True,
    )


@pytest.mark.parametrize(
    'value',
    [
        torch.zeros(0),
        torch.ones(2, dtype=torch.cfloat),
        torch.eye(2).to_sparse(),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.long),
        1.5,
    ],
    ids=str,
)
def test_what_has_no_range_is_ignored(value):
    assert watch('thing', value) is value
    assert read_watched() == {}


def test_under_vmap_nothing_is_kept():
    torch.vmap(lambda x: watch('thing', x) * 2)(torch.ones(3, 2))
    assert read_watched() == {}
