"""The simulated device catches what a real one would not forgive."""

import copy
import io
import math

import pytest
import simulated_device
import torch
from accelerator import count_waits

pytestmark = pytest.mark.gpu(simulated_only='tests of the simulation')
VALUES = torch.arange(6.0).reshape(2, 3)


def test_devices_do_not_mix(device):
    on_device = VALUES.to(device)
    for mix in (
        lambda: on_device + VALUES,
        lambda: torch.stack([on_device, VALUES]),
        lambda: on_device.copy_(on_device).addmm_(VALUES[:, :2], on_device),
        lambda: torch.where(on_device > 0, on_device, VALUES),
    ):
        with pytest.raises(RuntimeError, match='device'):
            mix()
    assert torch.equal((on_device * torch.tensor(2.0)).cpu(), VALUES * 2)


def test_views_share_memory_and_copies_do_not(device):
    tensor = VALUES.to(device)
    row, flat = tensor[1], tensor.view(-1)
    copies = tensor.clone(), copy.deepcopy(tensor), tensor.detach().cpu()
    flat[-1] = 7
    row[0] = 8
    assert tensor.cpu().tolist() == [[0, 1, 2], [8, 4, 7]]
    for other in copies:
        assert torch.equal(other.cpu(), VALUES)


def test_a_saved_tensor_is_loaded_to_either_device(device):
    file = io.BytesIO()
    torch.save(dict(values=VALUES.to(device)), file)
    for place in (device, 'cpu'):
        file.seek(0)
        loaded = torch.load(file, map_location=place)['values']
        assert loaded.device.type == place
        assert torch.equal(loaded.cpu(), VALUES)


def test_waits_are_counted(device):
    tensor = VALUES.to(device)
    with count_waits() as waits:
        (tensor + 1).sum().sqrt_().view(1).expand(3).contiguous()
        assert waits.count == 0
        tensor.sum().item()
        float(tensor[0, 1])
        tensor.tolist()
        bool((tensor > 2).any())
        tensor[tensor > 2]
        VALUES.to(device)
        VALUES.to(device, non_blocking=True)
    assert waits.count == 6


def test_a_late_copy_is_late(device):
    tensor = VALUES.to(device)
    host = torch.empty(2, 3, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.zero_()
    assert host.isnan().all()
    # The stream is in order: a later copy back has the values.
    again = host.to(device, non_blocking=True)
    assert torch.equal(again.cpu(), VALUES)
    assert torch.equal(host, VALUES)


def test_memory_that_is_being_read_must_stay(device):
    host = torch.ones(3, pin_memory=True)
    host.to(device, non_blocking=True)
    host[0] = math.nan
    with pytest.raises(RuntimeError, match='changed pinned memory'):
        simulated_device.synchronize()


def test_random_numbers_are_the_devices_own(device):
    torch.manual_seed(3)
    first = torch.rand(3, device=device).cpu()
    state = torch.get_rng_state()
    torch.rand(3, device=device)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3, device=device).cpu(), first)


def test_autocast(device):
    layer = torch.nn.Linear(3, 2).to(device)
    inputs = VALUES.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = layer(inputs)
        assert output.dtype is torch.bfloat16
        assert output.softmax(0).dtype is torch.float32
    assert layer(inputs).dtype is torch.float32
