"""A sample of tests/campaign_ranks.py."""

import json

from ranks import TESTS, finish, start

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER


def test_faults_on_one_rank_leave_no_trace(tmp_path):
    outcome = tmp_path / 'outcome.json'
    process = start(
        [TESTS / 'campaign_ranks.py', '--every', 29, '--json', outcome]
    )
    output = finish(process)
    assert process.returncode == 0, output
    cells = json.loads(outcome.read_text())
    # In PyTorch 2.1 without FSDP and fused optimizers.
    assert len(cells) == (25 if HAS_CPU_SCALER else 10)
    assert [cell for cell in cells if cell[-1]] == []
    for kind in zip(*(cell[:-1] for cell in cells)):
        assert len(set(kind)) > 1  # of each kind there are several
