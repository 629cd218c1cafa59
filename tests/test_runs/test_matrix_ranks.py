"""The oracle matrix on two ranks, with the fault on either of them.

One launch runs the cells in one to two minutes; the ranks are struck in turn.
With ``MATRIX=all`` in the environment each cell runs for both ranks, which
takes longer.

The expected cause is the one that the struck rank would have alone: its own
findings come before those that the reduction spreads. The other rank knows of
bad gradients after the reduction only from a message.
"""

import json
import os

import matrix
import pytest
from matrix_job import MEMORY
from ranks import launch

from mmnanguard.core import GuardState

IS_WHOLE = os.environ.get('MATRIX') == 'all'


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    """Return the results of each rank, by kind, fault and struck rank."""
    work_dir = tmp_path_factory.mktemp('matrix')
    launch('matrix_job.py', work_dir, IS_WHOLE)
    seen = {}
    for rank in range(2):
        text = (work_dir / f'rank_{rank}.json').read_text()
        for kind, fault, struck, cell in json.loads(text):
            key = matrix.Kind(*kind), matrix.Fault(*fault), struck
            seen.setdefault(key, []).append(cell)
    return seen


@pytest.mark.parametrize(
    'kind', matrix.KINDS, ids=lambda kind: '-'.join(map(str, kind))
)
def test_all_ranks_leave_no_trace(cells, kind):
    if matrix.lacks(kind):
        pytest.skip(matrix.lacks(kind))
    wrong = {}
    for key in [key for key in cells if key[0] == kind]:
        _, fault, struck = key
        name = f'{fault.site} {fault.value} on rank {struck}'
        seen, due = cells[key], expected(*key)
        for rank, cell in enumerate(seen):
            differing = {k: cell[k] for k in due if cell[k] != due[k]}
            if differing:
                wrong[f'{name}, seen by rank {rank}'] = differing
        if len({cell['shared'] for cell in seen}) != 1:
            wrong[name] = 'the ranks are not at the same weights'
    assert wrong == {}


def expected(kind, fault, struck):
    """Return the expected result, which is equal on every rank."""
    cause = fault.expected_cause(kind.precision)
    is_skip = [
        cause is not None and window in matrix.STRUCK
        for window in range(1, matrix.NUM_WINDOWS + 1)
    ]
    num_steps = is_skip.count(False)
    # A loss of NaN beside gradients as before does no harm, and is no skip
    # that counts toward a limit.
    recent_skips, harmless_skips = is_skip, 0
    if fault.site == 'loss':
        recent_skips = [False] * num_steps
        harmless_skips = is_skip.count(True)
    state = GuardState(
        num_updates=matrix.NUM_WINDOWS,
        num_steps=num_steps,
        total_skips=is_skip.count(True),
        commits_since_growth=num_steps,
        recent_skips=recent_skips,
        harmless_skips=harmless_skips,
    )
    counters = state.to_dict()
    for key in MEMORY:
        del counters[key]
    return dict(
        told=[
            [window, cause, [struck]]
            for window, is_skipped in enumerate(is_skip, 1)
            if is_skipped
        ],
        state=counters,
        scale=matrix.SCALE if kind.precision == 'fp16' else 1.0,
        differing=[],
        memory=[],
    )


@pytest.mark.skipif(
    any(map(matrix.lacks, matrix.KINDS)),
    reason='float16 and fused optimizers on a CPU need torch>=2.4',
)
def test_the_matrix_is_whole(cells):
    assert len(cells) == (2016 if IS_WHOLE else 1008)
    assert {len(seen) for seen in cells.values()} == {2}
    for about in (
        lambda kind: (),
        lambda kind: kind.precision,
        lambda kind: (kind.optimizer, kind.accumulation),
        lambda kind: (kind.clip, kind.accumulation),
    ):
        met = {(about(kind), *rest) for kind, *rest in cells}
        kinds = {about(kind) for kind in matrix.KINDS}
        assert len(met) == len(kinds) * len(matrix.FAULTS) * 2
