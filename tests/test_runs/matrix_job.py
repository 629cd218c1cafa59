"""One of two ranks that run the oracle matrix and write their results."""

import hashlib
import itertools
import json
import sys
from datetime import timedelta
from pathlib import Path

import matrix
from torch import distributed as dist


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


def see(kind, fault, struck):
    is_mine = struck == dist.get_rank()
    model, wrapper, events = matrix.run(kind, fault if is_mine else None)
    left = matrix.everything(model, wrapper)
    is_harmful = fault.expected_cause(kind.precision) is not None
    oracle = matrix.oracle if is_harmful else matrix.unfaulted
    shared = hashlib.sha256()
    for name, tensor in left.items():
        if 'running' not in name:  # each rank's own
            shared.update(tensor.numpy().tobytes())
    return dict(
        told=[[e.iter, e.cause.value, list(e.ranks)] for e in events],
        state=wrapper.guard.state.to_dict(),
        scale=wrapper.guard.scaler.get_scale(),
        differing=matrix.differing(left, oracle(kind)),
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
