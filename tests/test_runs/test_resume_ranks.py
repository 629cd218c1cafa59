"""All ranks resume from the same clean checkpoint, which rank 0 chooses."""

import json

import pytest
from ranks import launch


@pytest.mark.parametrize('where', ['buffers', 'optimizer', 'file'])
def test_all_ranks_take_the_last_clean_one(tmp_path, where):
    launch('resume_job.py', tmp_path, where)
    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    assert ranks[0] == ranks[1]
    assert ranks[0]['loaded'] == 'iter_2.pth'
    assert ranks[0]['num_steps'] == 4
