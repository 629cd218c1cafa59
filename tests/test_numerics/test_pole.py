"""A pole of an operation is told from an overflow of a dtype."""

import math

import pytest
import torch

from mmnanguard.numerics.probe.module_probe import ModuleProbe

ZERO = torch.zeros(2)
HUGE = torch.full((2,), 1e30)
HALF = torch.full((2,), 6e4, dtype=torch.float16)


def origin_of(run):
    probe = ModuleProbe(torch.nn.Linear(1, 1))
    with probe:
        output = run()
    return probe.origin_of(output)


def divide_in_place():
    ones = torch.ones(2)
    return ones.div_(ZERO)


@pytest.mark.parametrize(
    ('run', 'operands'),
    [
        (ZERO.log, (0.0,)),
        ((-ZERO).log, (0.0,)),
        (ZERO.reciprocal, (0.0,)),
        (lambda: ZERO / ZERO, (0.0, 0.0)),
        (lambda: HALF / ZERO.half(), (6e4, 0.0)),
        (divide_in_place, (1.0, 0.0)),
        ((ZERO - 1).sqrt, (-1.0,)),
        (lambda: torch.full((1, 2), -math.inf).softmax(1), ()),
    ],
)
def test_poles(run, operands):
    origin = origin_of(run)
    assert origin.is_pole is True
    assert origin.operands == operands


@pytest.mark.parametrize(
    'run',
    [
        HUGE.square,
        HUGE.exp,  # beyond float64 as well
        lambda: HUGE.mul_(1.0) * HUGE,
        lambda: HALF * 2,
        lambda: HALF.sum(),
        lambda: torch.ones(2).mul(1e6).half(),
        lambda: torch.mm(HUGE[None], HUGE[:, None]),
        lambda: torch.nn.functional.linear(HALF, HALF[None]),
    ],
)
def test_overflows(run):
    assert origin_of(run).is_pole is False


def test_a_random_operation_is_not_run_again():
    """Another draw would change what the rest of the replay draws."""
    inputs = torch.full((2,), 3e38)

    def run():
        # torch.dropout consists of two operations on a CPU.
        return torch.native_dropout(inputs, 0.5, True)[0]

    torch.manual_seed(1)
    expected = [run(), torch.rand(1)]
    probe = ModuleProbe(torch.nn.Linear(1, 1))
    torch.manual_seed(1)
    with probe:
        output = run()
        after = torch.rand(1)
    assert torch.equal(output, expected[0])
    assert torch.equal(after, expected[1])
    assert not torch.isfinite(output).all()
    assert probe.origin_of(output).op
