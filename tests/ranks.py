"""Jobs of several ranks on this machine, over gloo, under a deadline."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

TESTS = Path(__file__).parent
needs_fsdp = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='FSDP of PyTorch 2.1 runs on no CPU'
)
needs_deepspeed = pytest.mark.skipif(
    find_spec('deepspeed') is None, reason='DeepSpeed is not installed'
)
# In seconds. It ends what hangs; a busy machine may take its time.
DEADLINE = 900


def start(command, **environment):
    """Start Python on a command, as the head of a process group."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            'PYTHONWARNINGS': 'ignore',
            'OMP_NUM_THREADS': '1',
            'DS_ACCELERATOR': 'cpu',
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Return the output of a process of :func:`start`, once it has ended.

    Whatever happens, the process and its children do not outlive the call.
    """
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        end_group(process)
    return output


def end_group(process):
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def launch(job, *args, num_ranks=2):
    """Run a script of test_runs on all ranks; a hang ends at the deadline."""
    process = start(
        [
            *('-m', 'torch.distributed.run', '--standalone'),
            f'--nproc_per_node={num_ranks}',
            *(TESTS / 'rank.py', TESTS / 'test_runs' / job, *args),
        ]
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher then ends its ranks
        output, _ = process.communicate(timeout=60)
        raise AssertionError(f'hangs: {tail(output)}') from None
    finally:
        end_group(process)
    assert process.returncode == 0, tail(output)


def tail(output):
    """Return the last output of the ranks; of the launcher's long report, only
    the exit codes are kept.
    """
    lines = output.splitlines()
    is_report = ['torch/distributed/elastic' in line for line in lines]
    begin = [*is_report, True].index(True)
    ends = [line for line in lines[begin:] if 'exitcode' in line]
    return '\n'.join(lines[:begin][-30:] + ends)


def start_by_hand(job, *args, num_ranks=2):
    """Start one process per rank, without a launcher that ends all ranks when
    one ends.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    return [
        start(
            [TESTS / 'rank.py', TESTS / 'test_runs' / job, *args],
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(num_ranks),
        )
        for rank in range(num_ranks)
    ]
