import pytest
import torch
from odd_tensors import KINDS, LAZY, values

from mmnanguard.numerics.base.tensor_kinds import (
    copy_of,
    distinct_memory,
    is_ordinary,
    real_values,
    write,
)

NAN = float('nan')
# PyTorch warns of kinds that it calls experimental or obsolete.
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.mark.parametrize('kind', [*KINDS, *LAZY])
def test_no_kind_raises_an_error(kind):
    tensor = {**KINDS, **LAZY}[kind]()
    is_ordinary(tensor)
    real_values(tensor)
    copy = copy_of(tensor)
    if copy is not None:
        write(copy, tensor)


@pytest.mark.parametrize(
    'make',
    [
        lambda bad: bad.to(torch.complex64),
        lambda bad: bad.to(torch.complex32),
        lambda bad: torch.view_as_complex(torch.stack([bad, bad], -1)).conj(),
        lambda bad: bad.to_sparse(),
        lambda bad: bad.to_sparse_csr(),
        lambda bad: bad.to(torch.float8_e4m3fn),
        lambda bad: bad.half(),
    ],
)
def test_finds_nan_in(make):
    bad = values()
    assert torch.isfinite(real_values(make(bad))).all()
    bad[1, 2] = NAN
    assert torch.isnan(real_values(make(bad))).any()


def test_memory_of_an_expanded_tensor_can_be_written():
    tensor = torch.ones(1, 3).expand(2, 3)
    distinct_memory(tensor).fill_(2.0)
    assert tensor.tolist() == [[2.0] * 3] * 2


def test_memory_beside_an_expanded_tensor_is_left_alone():
    memory = torch.zeros(2, 3)
    distinct_memory(memory[:, :1].expand(2, 4)).fill_(1.0)
    assert memory.tolist() == [[1.0, 0.0, 0.0]] * 2


def test_memory_of_overlapping_rows_is_taken_once():
    memory = torch.arange(6.0)
    assert torch.equal(distinct_memory(memory.unfold(0, 3, 1)), memory)


@pytest.mark.parametrize(
    'tensor',
    [
        values().t(),
        values()[:, ::2],
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor(1.0),
    ],
)
def test_memory_that_occurs_once_is_the_tensor(tensor):
    assert distinct_memory(tensor) is tensor
