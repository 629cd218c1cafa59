"""The averages of a checkpoint, compared with MMEngine's own exchange."""

import torch
from mmengine.hooks import EMAHook

from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    source_of,
    trained_and_averaged,
)


def test_what_mmengine_exchanges_is_exchanged_back():
    trained = {'weight': torch.zeros(1), 'mask': torch.ones(2)}
    averaged = {
        'steps': torch.tensor(7),
        'module.weight': torch.ones(1),
        'module.mask': torch.zeros(2),
    }
    checkpoint = {'state_dict': dict(trained), EMA_KEY: dict(averaged)}
    EMAHook()._swap_ema_state_dict(checkpoint)
    assert checkpoint['state_dict']['weight'] is averaged['module.weight']
    result = trained_and_averaged(
        checkpoint['state_dict'], checkpoint[EMA_KEY]
    )
    for state, expected in zip(result, (trained, averaged)):
        assert list(state) == list(expected)
        assert all(state[name] is expected[name] for name in expected)


def test_without_averages():
    state = {'weight': 1}
    assert trained_and_averaged(state, {}) == (state, {})
    assert source_of('module.weight') == 'weight'
    assert source_of('steps') is None
