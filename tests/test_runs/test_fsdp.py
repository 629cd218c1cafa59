"""Sharded models: FSDP of both generations, and hybrids on four ranks.

A fault on one rank is rejected on all, with the same cause, and leaves no
trace in anyone's shard; norms are those of the whole model.
"""

import json

import pytest
from fsdp_job import STRUCK, build
from ranks import launch, needs_fsdp

pytestmark = needs_fsdp
NAMES = {name for name, _ in build().named_parameters()}
NAMES |= {name for name, _ in build().named_buffers()}
CAUSES = dict(
    loss='loss_nonfinite',
    grad='grad_nonfinite',
    activation='loss_nonfinite',
    buffer='buffer_nonfinite',
)


@pytest.fixture(scope='module', params=[2, 4], ids='{} ranks'.format)
def ranks(request, tmp_path_factory):
    """Return the results of each rank."""
    work_dir = tmp_path_factory.mktemp('fsdp')
    launch('fsdp_job.py', work_dir, num_ranks=request.param)
    paths = sorted(work_dir.glob('rank_*.json'))
    return [json.loads(path.read_text()) for path in paths]


def test_all_ranks_leave_no_trace(ranks):
    for cell, *seen in zip_cells(ranks):
        assert [result['differing'] for result in seen] == [[]] * len(seen)
        for result in seen:
            assert [row[0] for row in result['told']] == list(STRUCK), cell


def test_all_ranks_say_the_same_cause_and_the_struck_rank(ranks):
    for cell, *seen in zip_cells(ranks):
        for result in seen:
            for _, cause, bad_ranks in result['told']:
                assert cause == CAUSES[cell['site']], cell
                assert bad_ranks == [cell['struck']], cell


def test_all_ranks_end_with_the_same_state(ranks):
    for cell, first, *others in zip_cells(ranks):
        for other in others:
            for key in ('state', 'scale', 'norms'):
                assert other[key] == first[key], cell


def test_names_are_the_models_own(ranks):
    for cell, *seen in zip_cells(ranks):
        names = set(seen[cell['struck']]['names'])
        assert names <= NAMES, cell
        if cell['site'] == 'grad':
            assert len(names) == 1, cell


def test_norms_are_those_of_the_whole_model(ranks):
    for result in ranks:
        for way, clip, norms, whole in result['clean']:
            assert norms == pytest.approx(whole, rel=1e-5), (way, clip)


def zip_cells(ranks):
    """Yield each cell with the results of each rank."""
    for of_ranks in zip(*(result['seen'] for result in ranks)):
        cells, seen = zip(*of_ranks)
        assert all(cell == cells[0] for cell in cells)
        yield cells[0], *seen
