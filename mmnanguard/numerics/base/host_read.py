"""The only transfer from the device to the host in a clean update."""

from itertools import chain
from operator import attrgetter
from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['COPIES_LATE', 'read_once']

# The devices to and from which a copy may be late: CUDA itself keeps pageable
# memory until it is read, and arrives in pinned memory in the order of the
# stream. On a Mac such copies read memory that is freed already
# (pytorch/pytorch#189690), and other devices are not known.
COPIES_LATE = {'cuda'}

# attrgetter runs in C, which matters for thousands of values.
DEVICE = attrgetter('device')


def read_once(
    groups: Mapping[str, Sequence[Tensor]],
) -> Dict[str, List[float]]:
    """Bring many 0-dim tensors to the host in one transfer.

    This is the only sync of a clean update: a stage adds its tensors to a
    group instead of calling ``item``.

    Args:
        groups: 0-dim tensors of any dtype and device, by name.

    Returns:
        The groups as Python floats, rounded to float32. A finite float64
        beyond float32's range becomes inf.
    """
    flat = list(chain.from_iterable(groups.values()))
    numbers: List[float] = []
    # torch.stack refuses an empty list.
    if flat:
        # stack promotes mixed dtypes; float32 makes the result independent
        # of which other values happen to be read with a value.
        numbers = torch.stack(on_one_device(flat)).float().tolist()
    read, start = {}, 0
    for name, group in groups.items():
        read[name] = numbers[start : start + len(group)]
        start += len(group)
    return read


def on_one_device(values: List[Tensor]) -> List[Tensor]:
    """Return the values on one device, on an accelerator if any is there.

    A non-blocking copy to the host could be read before it has arrived, so
    values on the host go to the accelerator and not the other way round. No
    sync on CUDA.
    """
    devices = set(map(DEVICE, values))
    # The usual case: nothing is copied, and no list is built.
    if len(devices) == 1:
        return values
    device = next(filter(is_accelerator, devices))
    is_late = device.type in COPIES_LATE
    return [value.to(device, non_blocking=is_late) for value in values]


def is_accelerator(device: torch.device) -> bool:
    """Whether a device is not the host."""
    return device.type != 'cpu'
