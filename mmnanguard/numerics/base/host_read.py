"""The one transfer from the device to the host per clean update."""

from itertools import chain
from operator import attrgetter
from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['read_once']

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
    if not flat:
        return {name: [] for name in groups}
    # Values are gathered on an accelerator if any value is there, because a
    # non-blocking copy to the host could be read before it has arrived.
    devices = set(map(DEVICE, flat))
    if len(devices) > 1:
        device = next(d for d in devices if d.type != 'cpu')
        flat = [value.to(device, non_blocking=True) for value in flat]
    numbers = torch.stack(flat).float().tolist()
    read, start = {}, 0
    for name, group in groups.items():
        read[name] = numbers[start : start + len(group)]
        start += len(group)
    return read
