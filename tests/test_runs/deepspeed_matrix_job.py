"""One of two ranks that run the matrix over DeepSpeed, and write results."""

import itertools
import json
import sys
from pathlib import Path

import deepspeed_engine as engines
from torch import distributed as dist


def cells(is_whole):
    """Yield the kind, the fault and the struck rank of each cell.

    Without ``is_whole``, each kind meets half of the faults, and the ranks
    are struck in turn.
    """
    if is_whole:
        yield from itertools.product(engines.KINDS, engines.FAULTS, range(2))
        return
    for number, kind in enumerate(engines.KINDS):
        for turn, fault in enumerate(engines.FAULTS):
            if (number + number // 2 + number // 4 + turn) % 2:
                yield kind, fault, (number // 2 + turn // 2) % 2


def see(kind, fault, struck):
    wrapper, events = engines.run(kind, fault, struck=struck)
    blamed = []
    for event in events:
        blamed += [tensor.name for tensor in event.params]
    alone, _ = engines.run(kind, fault, struck=struck, is_guarded=False)
    due = engines.oracle(kind)
    return dict(
        told=[[e.iter, e.cause.value, list(e.ranks)] for e in events],
        skipped=wrapper.model.model.skipped_steps,
        differing=engines.differing(engines.everything(wrapper), due),
        alone=engines.differing(engines.everything(alone), due),
        names=blamed,
    )


def main(work_dir, is_whole):
    engines.start()
    seen = []
    for cell in cells(is_whole == 'True'):
        seen.append((*cell, see(*cell)))
    plain = {}
    for kind in engines.KINDS:
        left = engines.everything(engines.run(kind)[0])
        due = engines.oracle(kind, ())
        plain[repr(kind)] = engines.differing(left, due)
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(dict(cells=seen, plain=plain)))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
