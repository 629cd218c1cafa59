"""The matrix over DeepSpeed on two ranks: an update leaves no trace.

Each cell is a run with two struck windows, guarded and with DeepSpeed alone.
It is compared, bit for bit, with a run of DeepSpeed alone without these
windows: weights in both precisions, moments, buffers, loss scale and
DeepSpeed's own scheduler. With ``MATRIX=all`` in the environment each kind
meets all faults on both ranks.
"""

import json
import os

import pytest
from ranks import launch, needs_deepspeed

pytestmark = needs_deepspeed
IS_WHOLE = os.environ.get('MATRIX') == 'all'
NUM_KINDS = 48
STRUCK = (2, 5)
CAUSES = {
    ('input', 'nan'): 'loss_nonfinite',
    ('loss', 'nan'): 'loss_nonfinite',
    ('grad', 'nan'): 'grad_nonfinite',
    ('grad', 'inf'): 'grad_nonfinite',
    ('grad', '1e30'): 'norm_overflow',
    ('buffer', 'nan'): 'buffer_nonfinite',
}
NAMES = {'norm.running_mean', 'norm.running_var'}
for module in ('body', 'norm', 'head'):
    NAMES |= {f'{module}.weight', f'{module}.bias'}


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('deepspeed')
    launch('deepspeed_matrix_job.py', work_dir, IS_WHOLE)
    return [
        json.loads((work_dir / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]


def rows(ranks):
    for rank in ranks:
        for kind, fault, struck, cell in rank['cells']:
            yield f'{kind} {fault} on rank {struck}', kind, fault, struck, cell


def test_a_struck_window_leaves_no_trace(ranks):
    wrong = {}
    for name, _, _, _, cell in rows(ranks):
        if cell['differing'] or cell['skipped'] != len(STRUCK):
            wrong[name] = cell['differing'], cell['skipped']
    assert wrong == {}


def test_deepspeed_alone_leaves_a_trace_in_each_cell(ranks):
    traces = {}
    for name, *_, cell in rows(ranks):
        traces.setdefault(name, []).extend(cell['alone'])
    assert [name for name, trace in traces.items() if not trace] == []


def test_both_ranks_tell_the_same_cause(ranks):
    for name, kind, fault, struck, cell in rows(ranks):
        cause = CAUSES[tuple(fault)]
        # A float16 has no such number.
        if kind[1] == 'fp16' and fault[1] == '1e30':
            cause = 'grad_nonfinite'
        due = [[window, cause, [struck]] for window in STRUCK]
        assert cell['told'] == due, name
        # Names are the model's own.
        assert NAMES.issuperset(cell['names']), name
    struck_gradients = [
        cell['names']
        for _, _, fault, _, cell in rows(ranks)
        if fault[0] == 'grad'
    ]
    assert any(struck_gradients)


def test_a_run_without_faults_is_that_of_deepspeed_alone(ranks):
    for rank in ranks:
        assert len(rank['plain']) == NUM_KINDS
        assert {
            name: diff for name, diff in rank['plain'].items() if diff
        } == {}


def test_the_matrix_is_whole(ranks):
    kinds, faults, struck = set(), set(), set()
    for _, kind, fault, rank, _ in rows(ranks):
        kinds.add(tuple(kind))
        faults.add((kind[0], kind[1], *fault))
        struck.add((kind[0], rank))
    assert len(kinds) == NUM_KINDS
    assert len(faults) == 4 * 3 * len(CAUSES)
    assert len(struck) == 4 * 2
    assert len(ranks[0]['cells']) == (576 if IS_WHOLE else 144)
