"""The state of a communication hook comes back as it was."""

import torch

from mmnanguard.numerics.base.comm_hooks import HookState


class State:
    __slots__ = ('errors', 'new')

    def __init__(self):
        self.errors = {0: torch.zeros(2)}


def test_values_and_names_come_back():
    state = State()
    copy = HookState(state)
    for _ in range(2):
        state.errors[0].fill_(float('nan'))
        state.errors[1] = torch.ones(1)
        state.new = 1
        copy.restore()
        assert list(state.errors) == [0]
        assert state.errors[0].tolist() == [0.0, 0.0]
        assert not hasattr(state, 'new')
