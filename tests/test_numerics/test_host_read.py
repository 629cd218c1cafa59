import math

import pytest
import torch

from mmnanguard.numerics.base.host_read import read_once


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (torch.tensor(1.5), 1.5),
        (torch.tensor(1.5, dtype=torch.float16), 1.5),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor(1.5, dtype=torch.float64), 1.5),
        (torch.tensor(3), 3.0),
        (torch.tensor(True), 1.0),
        (torch.tensor(-math.inf), -math.inf),
        # Rounded to float32.
        (torch.tensor(1e300, dtype=torch.float64), math.inf),
        (torch.tensor(1 + 1e-12, dtype=torch.float64), 1.0),
    ],
)
def test_values(value, expected):
    (number,) = read_once({'a': [value]})['a']
    assert number == expected
    assert type(number) is float


def test_nan_arrives():
    assert math.isnan(read_once({'a': [torch.tensor(math.nan)]})['a'][0])


def test_groups_keep_names_order_and_length():
    first, second = torch.tensor(1.0), torch.tensor(2.0, dtype=torch.float16)
    groups = {
        'a': [first, second],
        'none': (),
        'b': (first.int(),),
        'c': [second],
    }
    read = read_once(groups)
    assert read == {'a': [1.0, 2.0], 'none': [], 'b': [1.0], 'c': [2.0]}
    assert list(read) == list(groups)


@pytest.mark.parametrize('groups', [{}, {'a': []}, {'a': [], 'b': ()}])
def test_nothing_to_read_needs_no_device(groups, monkeypatch):
    monkeypatch.setattr(torch, 'stack', None)
    assert read_once(groups) == {name: [] for name in groups}
