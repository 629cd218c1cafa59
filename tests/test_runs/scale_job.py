"""One of two ranks that train in float16; rank 1 has bad gradients."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from mmnanguard.optim import NanGuardAmpOptimWrapper

BAD = {3: 'nan', 6: 'inf', 9: 'nan', 10: 'nan', 11: 'nan'}


def main(work_dir):
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    wrapper = NanGuardAmpOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.01),
        dtype='float16',
        loss_scale=4096.0,
        guard=dict(proven_after=4),
    )
    wrapper.guard.attach(object())
    scales = []
    for number in range(24):
        with wrapper.optim_context(model):
            loss = model(torch.randn(4, 3)).float().square().mean()
        if rank == 1 and number in BAD:
            factor = float(BAD[number])
            # The loss stays finite.
            handle = model.bias.register_hook(lambda g: g * factor)  # noqa: B023
        wrapper.update_params(loss)
        if rank == 1 and number in BAD:
            handle.remove()
        scales.append(wrapper.loss_scaler.get_scale())
    events = wrapper.guard.take_events()
    result = dict(
        scales=scales,
        state=wrapper.guard.state.to_dict(),
        ranks=[event.ranks for event in events],
        blamed=[event.scale_blamed for event in events],
    )
    Path(work_dir, f'rank{rank}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(sys.argv[1])
