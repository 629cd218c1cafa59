from operator import attrgetter
from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['read_once']

# In C, as there may be thousands of values.
DEVICE = attrgetter('device')


def read_once(
    groups: Mapping[str, Sequence[Tensor]],
) -> Dict[str, List[float]]:
    """Bring many 0-dim tensors to the host in one transfer.

    This is the ONE sync of a clean update: whatever a stage wants to know
    joins a group here instead of calling ``item``.

    Args:
        groups: 0-dim tensors of any dtype and device, by name.

    Returns:
        The same groups as Python floats, rounded to float32; a finite
        float64 beyond float32's range reads as inf.
    """
    flat = [value for group in groups.values() for value in group]
    if not flat:
        return {name: [] for name in groups}
    # A device, if any value is on one: a copy to the host that does not block
    # could be read before it has arrived.
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
