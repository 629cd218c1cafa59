"""Cells of the oracle matrix on several ranks, with the fault on one rank.

Run by ``benchmarks/gpu.py``. Each cell is trained with faults and again
without the struck iterations; all ranks must end alike, bit for bit.
"""

import json
import os
import tempfile
from pathlib import Path

import matrix
import torch
from torch import distributed as dist
from torch import multiprocessing

KINDS = matrix.KINDS[::9]
FAULTS = [fault for fault in matrix.FAULTS if fault.value == 'nan']


def train_cells(rank, num_ranks, backend, device, file):
    """Train all cells as one rank; rank 0 writes the results to a file."""
    matrix.DEVICE = device
    if device == 'cuda':
        torch.cuda.set_device(rank)
        matrix.DEVICE = f'cuda:{rank}'
    torch.backends.cudnn.deterministic = True
    dist.init_process_group(backend, rank=rank, world_size=num_ranks)
    wrong, cells = [], 0
    for kind in KINDS:
        for fault in FAULTS:
            is_struck = rank == num_ranks - 1
            result = matrix.run(kind, fault if is_struck else None)
            verdicts = [event.cause.value for event in result[2]]
            names = matrix.differing(
                matrix.everything(*result[:2]), matrix.oracle(kind)
            )
            answers = [None] * num_ranks
            dist.all_gather_object(answers, (verdicts, names))
            cells += 1
            cause = fault.expected_cause(kind.precision)
            expected = [cause] * len(matrix.STRUCK), []
            if any(tuple(answer) != expected for answer in answers):
                wrong.append(f'{tuple(kind)}, {tuple(fault)}: {answers}')
    if rank == 0:
        row = dict(ranks=num_ranks, backend=backend, cells=cells, wrong=wrong)
        Path(file).write_text(json.dumps(row), encoding='utf-8')
    dist.destroy_process_group()


def measure_ranks(num_ranks, backend, device):
    """Train all cells on several ranks.

    Returns:
        The numbers of ranks and cells, and those cells that went wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
        os.environ.setdefault('MASTER_PORT', '29517')
        file = Path(folder, 'cells.json')
        multiprocessing.spawn(
            train_cells, (num_ranks, backend, device, str(file)), num_ranks
        )
        return json.loads(file.read_text(encoding='utf-8'))
