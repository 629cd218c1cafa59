"""All ranks roll back together, though only one has a bad state."""

import json

import pytest
from ranks import launch, needs_fsdp


@pytest.mark.parametrize(
    'way', ['ddp', pytest.param('local', marks=needs_fsdp)]
)
def test_all_ranks_go_back(tmp_path, way):
    launch('rollback_job.py', tmp_path, way)
    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    for seen in ranks:
        assert seen['back'] == [True, True]
        assert seen['moved']
        assert seen['finite']
        assert seen['rollbacks'] == 2
    rows = [(row['iter'], row['to']) for row in ranks[0]['rows']]
    assert rows == [(7, 4), (9, 8)]
