"""An audit checks all state that a run keeps in one pass."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mmnanguard.numerics.checkpoints.state_audit import KeptTensor, StateAudit

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def kept(**tensors):
    return [
        KeptTensor('buffers', name, value, name.startswith('mask'))
        for name, value in tensors.items()
    ]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_one_element_is_enough(dtype, value):
    if dtype is torch.float8_e4m3fn:
        value = math.nan  # it has no Inf
    tensor = torch.ones(3, 5).to(dtype)
    beside = dict(more=torch.ones(2), counter=torch.tensor(3), step=1.0)
    audit = StateAudit(kept(tensor=tensor, **beside))
    assert audit.check(kept(tensor=tensor, **beside)).names == ()

    poison = torch.tensor(value).to(dtype)
    tensor[1, 2] = poison
    result = audit.check(kept(tensor=tensor, **beside))

    assert result.names == (('buffers', 'tensor'),)
    (bad,) = result.tensors
    assert (bad.name, bad.tensor) == ('tensor', 'buffers')
    assert bad.kind == ('nan' if math.isnan(value) else 'inf')
    lowest = 0 if dtype.is_complex else 1
    assert (bad.count, bad.min, bad.max) == (1, lowest, 1)


def test_floats_sparse_and_empty_tensors():
    sparse = torch.eye(3).to_sparse()
    state = dict(sparse=sparse, none=torch.ones(0), number=1.0)
    audit = StateAudit(kept(**state))
    assert audit.check(kept(**state)).names == ()
    state.update(sparse=sparse * math.nan, number=math.inf)
    assert audit.check(kept(**state)).names == (
        ('buffers', 'sparse'),
        ('buffers', 'number'),
    )


def test_a_float64_beyond_float32_is_not_bad():
    large = torch.tensor([1e300], dtype=torch.float64)
    audit = StateAudit(kept(large=large))
    assert audit.check(kept(large=large)).names == ()


def test_a_few_are_described_at_each_place():
    bad = torch.tensor([math.nan])
    state = [
        KeptTensor(where, f'{where} {number}', bad)
        for where, number in itertools.product(
            ('weights', 'optimizer'), range(40)
        )
    ]
    result = StateAudit([]).check(state)
    assert len(result.names) == 80
    assert [tensor.tensor for tensor in result.tensors] == (
        ['weights'] * 5 + ['optimizer'] * 5
    )


def test_a_clean_state_is_read_once(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / 'benchmarks')
    from benchmark import HostReads

    state = kept(
        mask=torch.tensor([0.0, -math.inf]),
        half=torch.ones(3).half(),
        number=1.0,
        **{f'step {n}': torch.ones(()) for n in range(50)},
    )
    audit = StateAudit(state)

    with HostReads() as reads:
        assert audit.check(state).names == ()

    assert reads.count == 1


class TestMasks:
    """Masks are Inf by design; other infinite tensors are bad."""

    mask = torch.tensor([0.0, -math.inf])

    def test_from_the_beginning(self):
        audit = StateAudit(kept(mask=self.mask))
        assert audit.check(kept(mask=self.mask)).names == ()
        bad = kept(mask=self.mask * 0)
        assert audit.check(bad).names == (('buffers', 'mask'),)

    def test_nan_from_the_beginning_is_by_design_if_nothing_was_loaded(self):
        state = kept(mask=torch.tensor([math.nan, 1.0]))
        assert StateAudit(state, is_fresh=True).check(state).names == ()
        assert StateAudit(state).check(state).names != ()

    def test_what_is_trained_is_no_mask(self):
        state = kept(weight=self.mask)
        assert StateAudit(state, is_fresh=True).check(state).names != ()

    def test_a_finite_buffer_that_becomes_inf_is_no_mask(self):
        buffer = torch.tensor([0.0, 1.0])
        audit = StateAudit(kept(mask=buffer))
        buffer[1] = math.inf
        for _ in range(2):
            assert audit.check(kept(mask=buffer)).names != ()

    def test_one_that_takes_the_place_of_another(self):
        audit = StateAudit(kept(mask=torch.zeros(1)))
        state = kept(mask=self.mask)
        assert audit.check(state).names == ()
        assert audit.check(state).names == ()
        other = kept(mask=torch.tensor([0.5, 0.25, math.inf]))
        audit = StateAudit(kept(mask=torch.zeros(1)))
        assert audit.check(other).names != ()

    def test_its_average_is_not_judged(self):
        average = KeptTensor('ema', 'mask', torch.tensor([0.0, math.nan]))
        audit = StateAudit(kept(mask=self.mask))
        assert audit.check([*kept(mask=self.mask), average]).names == ()
        other = average._replace(name='weight')
        result = audit.check([*kept(mask=self.mask), other])
        assert result.names == (('ema', 'weight'),)


def test_nothing_is_changed():
    net = nn.Linear(2, 2)
    before, version = net.weight.clone(), net.weight._version
    StateAudit([KeptTensor('weights', 'weight', net.weight)]).check(
        [KeptTensor('weights', 'weight', net.weight)]
    )
    assert torch.equal(before, net.weight)
    assert net.weight._version == version
