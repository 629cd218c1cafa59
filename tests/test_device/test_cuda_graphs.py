"""CUDA graphs: an update is refused inside of one, and fits beside them."""

import pytest
import torch
from torch import nn

from mmnanguard.core import GuardConfigError
from mmnanguard.optim import NanGuardOptimWrapper

REASON = 'no other device captures graphs'


def build(device):
    model = nn.Linear(3, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, NanGuardOptimWrapper(optimizer=optimizer)


def update(model, wrapper, inputs):
    with wrapper.optim_context(model):
        loss = model(inputs).square().mean()
    wrapper.update_params(loss)


def test_an_update_in_a_graph_is_refused_by_name(monkeypatch):
    """The capture is pretended, because a real one needs a GPU."""
    model, wrapper = build('cpu')
    update(model, wrapper, torch.ones(1, 3))
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: True
    )
    with pytest.raises(GuardConfigError, match='make_graphed_callables'):
        update(model, wrapper, torch.ones(1, 3))
    with pytest.raises(GuardConfigError, match=r'torch\.cuda\.graph'):
        wrapper.step()
    assert wrapper.guard.state.num_steps == 1


@pytest.mark.gpu(real_only=REASON)
def test_an_update_in_a_graph_is_refused(device):
    model, wrapper = build(device)
    inputs = torch.ones(1, 3, device=device)
    graph = torch.cuda.CUDAGraph()
    match = r'torch\.cuda\.graph'
    with pytest.raises(GuardConfigError, match=match), torch.cuda.graph(graph):
        update(model, wrapper, inputs)


@pytest.mark.gpu(real_only=REASON)
def test_graphed_forward_and_backward(device):
    """The wrapper's calls stand outside of the graphs."""
    model, wrapper = build(device)
    inputs = torch.ones(1, 3, device=device)
    graphed = torch.cuda.make_graphed_callables(model, (inputs.clone(),))
    for factor in (1.0, float('nan'), 1.0):
        before = [param.detach().clone() for param in model.parameters()]
        update(graphed, wrapper, inputs * factor)
        after = [param.detach() for param in model.parameters()]
        is_same = all(map(torch.equal, before, after))
        assert is_same == (factor != 1.0)
    assert wrapper.guard.state.num_steps == 2
