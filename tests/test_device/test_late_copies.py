"""Copies that arrive late, and what they restore."""

import pytest
import torch
from accelerator import count_waits

from mmnanguard.numerics.base import host_read
from mmnanguard.numerics.base.rng_state import read_rng, set_rng
from mmnanguard.numerics.checkpoints import host_tensor
from mmnanguard.numerics.checkpoints.host_tensor import keep_tensor
from mmnanguard.numerics.checkpoints.scan import scan_checkpoint

pytestmark = pytest.mark.gpu


def test_a_copy_that_has_not_arrived_restores_its_values(device):
    values = torch.arange(6.0).view(2, 3)
    tensor = values.to(device)
    with count_waits() as waits:
        kept = keep_tensor(tensor)
    assert waits.count == 0
    tensor.fill_(7)
    kept.restore(tensor)
    assert torch.equal(tensor.cpu(), values)
    new = kept.restore(None)
    assert new.device.type == device
    assert torch.equal(new.cpu(), values)


def test_a_copy_survives_its_source(device):
    values = torch.arange(6.0)
    kept = keep_tensor(values.to(device))
    torch.full((6,), 7.0).to(device)
    assert torch.equal(kept.restore(None).cpu(), values)


def test_a_random_state_that_was_loaded_to_the_device(device):
    """MMEngine resumes with the whole checkpoint on the device."""
    state = read_rng()
    expected = torch.rand(2), torch.rand(2, device=device).cpu()
    for key in ('torch', 'device'):
        if state[key] is not None:
            state[key] = state[key].to(device)
    state['cuda'] = [part.to(device) for part in state['cuda']]
    state['numpy'][1] = state['numpy'][1].to(device)
    set_rng(state)
    assert torch.equal(torch.rand(2), expected[0])
    assert torch.equal(torch.rand(2, device=device).cpu(), expected[1])


def test_masks_on_the_device_are_scanned(device):
    """Each start of a run scans the model where it is."""
    mask = torch.tensor([0.0, -torch.inf])
    on_host = scan_checkpoint(dict(state_dict=dict(mask=mask)))
    scan = scan_checkpoint(dict(state_dict=dict(mask=mask.to(device))))
    assert len(scan.masks) == 1
    assert scan.masks == on_host.masks


@pytest.mark.gpu(simulated_only='CUDA is known to copy late')
def test_a_device_that_is_not_known_copies_at_once(device, monkeypatch):
    """Late copies on a Mac read memory that is freed already."""
    monkeypatch.setattr(host_read, 'COPIES_LATE', set())
    monkeypatch.setattr(host_tensor, 'COPIES_LATE', set())
    values = [torch.ones(()), torch.ones(()).to(device)]
    with count_waits() as waits:
        assert host_read.read_once(dict(a=values)) == dict(a=[1.0, 1.0])
        host_tensor.keep_tensor(values[1])
    # One copy to the device, the read, and the kept copy.
    assert waits.count == 3
