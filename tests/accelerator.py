"""The accelerator that tests marked ``gpu`` run on: CUDA or the simulated one.

``pytest --simulated-device`` simulates one, in tests and in benchmarks.
"""

import contextlib
import warnings

import simulated_device
import torch
from mmengine import device as mmengine_device

from mmnanguard.numerics.base.host_read import COPIES_LATE

# Keeps the registration of the simulated device alive.
_registered = []


def simulate():
    """Register the simulated device and have MMEngine train on it."""
    _registered.append(simulated_device.register())
    mmengine_device.utils.DEVICE = simulated_device.NAME
    COPIES_LATE.add(simulated_device.NAME)


def name():
    """Return the type of the device, or None if there is none."""
    if _registered:
        return simulated_device.NAME
    return 'cuda' if torch.cuda.is_available() else None


class Waits:
    """A count of the times that the host waited for the device."""

    count = 0


@contextlib.contextmanager
def count_waits():
    """Count how often the host waits for the device in this thread."""
    waits = Waits()
    if _registered:
        before = sum(simulated_device.waits.values())
        yield waits
        waits.count = sum(simulated_device.waits.values()) - before
        return
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode('default')
    for message in messages:
        waits.count += 'synchronizing CUDA' in str(message.message)
