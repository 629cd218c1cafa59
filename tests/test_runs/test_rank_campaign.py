"""A sample of tests/campaign_ranks.py."""

import json

from ranks import TESTS, start


def test_faults_on_one_rank_leave_no_trace(tmp_path):
    outcome = tmp_path / 'outcome.json'
    process = start(
        [TESTS / 'campaign_ranks.py', '--every', 29, '--json', outcome]
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    cells = json.loads(outcome.read_text())
    assert len(cells) == 25
    assert [cell for cell in cells if cell[-1]] == []
    for kind in zip(*(cell[:-1] for cell in cells)):
        assert len(set(kind)) > 1  # of each kind there are several
