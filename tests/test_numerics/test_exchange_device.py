"""The device on which ranks exchange numbers, on old and new PyTorch."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from mmnanguard.numerics.update.agree import exchange_device


@pytest.fixture
def stack(monkeypatch):
    def pretend(backend, has_cuda, accelerator):
        monkeypatch.setattr(dist, 'get_backend', lambda: backend)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_cuda)
        if accelerator is None:  # before torch 2.6
            monkeypatch.delattr(torch, 'accelerator', raising=False)
            return
        current = SimpleNamespace(current_accelerator=lambda: accelerator)
        monkeypatch.setattr(torch, 'accelerator', current, raising=False)

    return pretend


@pytest.mark.parametrize('backend', ['gloo', 'cpu:gloo,cuda:nccl'])
@pytest.mark.parametrize('has_cuda', [True, False])
def test_gloo_exchanges_on_the_host(stack, backend, has_cuda):
    stack(backend, has_cuda, torch.device('cuda'))
    assert exchange_device().type == 'cpu'


@pytest.mark.parametrize('accelerator', [None, torch.device('cuda')])
def test_nccl_exchanges_on_the_gpu(stack, accelerator):
    stack('nccl', True, accelerator)
    assert exchange_device().type == 'cuda'


def test_devices_from_outside_of_pytorch(stack):
    stack('hccl', False, None)
    name = torch._C._get_privateuse1_backend_name()
    assert exchange_device().type == name
    stack('xccl', False, torch.device('xpu'))
    assert exchange_device().type == 'xpu'
