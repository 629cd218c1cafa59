"""One of two ranks that run the oracle matrix and write their results."""

import hashlib
import itertools
import json
import sys
from datetime import timedelta
from pathlib import Path

import matrix
import torch
from torch import distributed as dist

from mmnanguard.core.rules.state import NUM_FIRST

MEMORY = ('recent_commits', 'scale_trial', 'first_losses')


def all_cells():
    """Yield the kind, the fault and the struck rank of each cell."""
    return itertools.product(matrix.KINDS, matrix.FAULTS, range(2))


def half_of_the_cells():
    """Yield half of the cells, with the two ranks struck in turn.

    Each fault still meets each rank at each precision, and with each
    optimizer, clip and accumulation.
    """
    for number, kind in enumerate(matrix.KINDS):
        for turn, fault in enumerate(matrix.FAULTS):
            yield kind, fault, (number + number // 2 + turn) % 2


def differing_memory(kind, fault, is_harmful, memory):
    """Return the parts of a guard's memory that are not the oracle's."""
    left_out = matrix.STRUCK if is_harmful else ()
    _, wrapper = matrix.run_without(kind, left_out)
    due = wrapper.guard.state.to_dict()
    commits = due['recent_commits']
    if is_harmful:
        windows = range(1, matrix.NUM_WINDOWS + 1)
        commits['update'] = [n for n in windows if n not in left_out]
    else:
        for window in matrix.STRUCK:
            # A loss of another number is all that the fault does.
            loss = memory['recent_commits']['loss'][window - 1]
            commits['loss'][window - 1] = loss
        # None stands for NaN.
        first = commits['loss'][:NUM_FIRST]
        due['first_losses'] = [loss for loss in first if loss is not None]
    if kind.precision == 'fp16' and fault.site in ('input', 'activation'):
        # Gradients beside a bad loss may have overflowed: it is remembered
        # how often they have spared the scale.
        due['scale_trial'].update(
            is_open=True,
            suspect='loss',
            num_spared=len(matrix.STRUCK),
            num_clean=matrix.NUM_WINDOWS - len(matrix.STRUCK),
        )
    return [key for key in memory if memory[key] != due[key]]


def see(kind, fault, struck):
    is_mine = struck == dist.get_rank()
    model, wrapper, events = matrix.run(kind, fault if is_mine else None)
    left = matrix.everything(model, wrapper)
    is_harmful = fault.expected_cause(kind.precision) is not None
    oracle = matrix.oracle if is_harmful else matrix.unfaulted
    state = wrapper.guard.state.to_dict()
    # All else in the state are counters, which tell of the fault.
    memory = {key: state.pop(key) for key in MEMORY}
    shared = hashlib.sha256()
    for name, tensor in left.items():
        if 'running' not in name:  # each rank's own
            bits = tensor.flatten().contiguous().view(torch.uint8)
            shared.update(bits.numpy())
    return dict(
        told=[[e.iter, e.cause.value, list(e.ranks)] for e in events],
        state=state,
        scale=wrapper.guard.scaler.get_scale(),
        differing=matrix.differing(left, oracle(kind)),
        memory=differing_memory(kind, fault, is_harmful, memory),
        shared=shared.hexdigest(),
    )


def main(work_dir, is_whole):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    cells = all_cells() if is_whole == 'True' else half_of_the_cells()
    seen = [(*cell, see(*cell)) for cell in cells if not matrix.lacks(cell[0])]
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
