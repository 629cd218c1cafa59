import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

TOOLS = Path(__file__).parents[2] / 'tools'
FAULTS = ('none', 'nan', 'inf', 'huge', 'loss', 'buffer', 'input')


@pytest.fixture(scope='module')
def both():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        device = importlib.import_module('device_verdict').VerdictOnDevice
        yield importlib.import_module('update_sides').Guarded, device


def strike(side, fault, grads):
    """Leave gradients, a loss, buffers and a flag, one of them bad."""
    side.grads = [grad.clone() for grad in grads]
    side.loss = torch.tensor(float('inf') if fault == 'loss' else 1.0)
    if fault in ('nan', 'inf', 'huge'):
        value = 3e19 if fault == 'huge' else float(fault)
        side.grads[1].view(-1)[-1] = value
    side.prepare()
    with side.wrapper.optim_context(side.model):
        norm = next(m for m in side.model if isinstance(m, nn.BatchNorm2d))
        norm.running_mean += float('nan') if fault == 'buffer' else 1.0
    is_bad = torch.tensor(fault == 'input')
    side.wrapper.add_fact('input', is_bad)


def all_of(side):
    states = side.wrapper.optimizer.state_dict()['state']
    return dict(
        model=side.model.state_dict(),
        states=states,
        guard=side.wrapper.guard.state_dict()['state'],
        scale=side.scaler.get_scale(),
    )


@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=8),
    clip=st.sampled_from([None, 0.1, 1e6]),
    is_fp16=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None)
def test_the_device_decides_what_the_host_decides(
    both, faults, clip, is_fp16, seed
):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    adamw = partial(torch.optim.AdamW, lr=0.1, fused=True)
    grads = [torch.zeros_like(param) for param in model.parameters()]
    sides = [build((model, grads, adamw, clip, is_fp16)) for build in both]
    for side in sides:
        side.wrapper.guard.attach(object())  # nobody halts

    for fault in faults:
        grads = [torch.randn(g.shape, generator=generator) for g in grads]
        for side in sides:
            strike(side, fault, grads)
            side.run()

        on_host, on_device = map(all_of, sides)
        # The factor is computed in another order there: a rounding of it.
        torch.testing.assert_close(on_device, on_host, rtol=1e-6, atol=1e-7)
        verdicts = [
            [(e.action, e.cause) for e in side.wrapper.guard.take_events()]
            for side in sides
        ]
        assert verdicts[0] == verdicts[1]
        assert len(verdicts[0]) == (fault != 'none')
