"""The verdict on the device: the step is queued, the host reads after it.

The way that was not taken, for comparison: a fused optimizer can be told by
tensors how much to scale gradients and whether to step at all. The host then
need not wait between backward and step. It works for rules without a history
and on one rank, and costs more kernels. What it decides is what the guard
decides (``tests/test_tools/test_device_verdict.py``).
"""

import importlib
from contextlib import ExitStack
from unittest import mock

import torch
from update_sides import Guarded

from mmnanguard.core import NORM_LIMIT
from mmnanguard.optim.guarded_step import guarded_step

# Their functions of the same names hide these modules.
OBSERVE = importlib.import_module('mmnanguard.numerics.observe')
GUARDED_STEP = importlib.import_module('mmnanguard.optim.guarded_step')


def queued_step(guard, optimizer, max_norm):
    """Like ``guarded_step``; only for a fused optimizer, and a clip by L2."""
    if not optimizer.state:
        # A rejected first step would leave states behind.
        guarded_step(guard, optimizer)
        return
    _, grads = guard.collect(optimizer)
    norms = OBSERVE.tensor_norms(grads, 2.0)
    facts = guard.undo.snapshot.facts()
    queue(optimizer, norms, facts, guard, max_norm)
    with ExitStack() as seen_already:
        for owner, name, known in (
            (OBSERVE, 'tensor_norms', norms),
            (guard.undo.snapshot, 'facts', facts),
            (GUARDED_STEP, 'apply_update', None),
        ):
            seen_already.enter_context(
                mock.patch.object(owner, name, lambda *_, known=known: known)
            )
        guarded_step(guard, optimizer)


@torch.no_grad()
def queue(optimizer, norms, facts, guard, max_norm):
    carried = guard.scaler.read(optimizer).carried
    norm = torch.linalg.vector_norm(torch.stack(list(norms)).double())
    norm = norm / carried
    others = [*guard.losses, *facts['buffers']]
    is_good = torch.isfinite(torch.stack(others)).all() & (norm <= NORM_LIMIT)
    for flags in guard.facts.values():
        is_good &= ~torch.stack(flags).any()
    coef = 1.0
    if max_norm:
        coef = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer.grad_scale = torch.as_tensor(carried / coef).to(norm).float()
    optimizer.found_inf = (~is_good).float()
    with guard.gaps.stepping():
        optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


class VerdictOnDevice(Guarded):
    def set_up(self):
        super().set_up()
        guard = self.wrapper.guard
        self.wrapper.step = lambda: queued_step(
            guard, self.optimizer, self.clip
        )
