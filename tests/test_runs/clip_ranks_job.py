"""One of two ranks that train with adaptive clipping; each writes its results
to a file.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import matrix
import torch
from fsdp_job import WAYS, build
from torch import distributed as dist

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardOptimWrapper


def see(kind, fault):
    """Train with a fault on rank 1 and, as the oracle, without its windows."""
    is_struck = dist.get_rank() == 1
    model, wrapper, events = matrix.run(kind, fault if is_struck else None)
    twin, oracle, _ = matrix.run(kind, leave_out=matrix.STRUCK)
    return dict(
        causes=[event.cause.value for event in events],
        rule=wrapper.guard.clip_rule.to_dict(),
        oracle=oracle.guard.clip_rule.to_dict(),
        differing=matrix.differing(
            matrix.everything(model, wrapper), matrix.everything(twin, oracle)
        ),
    )


def refusal(way):
    """Return the error of AdaptiveGradClip on a sharded model."""
    model = WAYS[way](build())
    wrapper = NanGuardOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        clip_grad=dict(type='AdaptiveGradClip'),
    )
    with wrapper.optim_context(model):
        loss = model(torch.randn(4, 3)).square().mean()
    try:
        wrapper.update_params(loss)
    except GuardConfigError as error:
        return str(error)
    return ''


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    fault = matrix.Fault('grad', 'nan')
    seen = {}
    for precision in ('fp32', 'fp16') if HAS_CPU_SCALER else ('fp32',):
        for clip in matrix.ADAPTIVE:
            kind = matrix.Kind(precision, 'adamw', clip, 1)
            seen[f'{precision} {clip}'] = see(kind, fault)
    ways = ('flat', 'flat, original parameters', 'dtensors')
    ways += ('flat, not sharded',)
    # FSDP of PyTorch 2.1 runs on no CPU.
    refusals = {way: refusal(way) for way in ways if HAS_CPU_SCALER}
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(dict(seen=seen, refusals=refusals)))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
