"""A killed rank ends the other rank, with the reason and nothing applied."""

import signal

import pytest
import torch
from ranks import DEADLINE, end_group, start_by_hand


@pytest.mark.parametrize(
    ('stage', 'victim'),
    [
        ('step', 1),
        # Where the ranks' store lives.
        ('step', 0),
        ('forward', 1),
        ('check', 1),
    ],
)
def test_the_survivor_ends(tmp_path, stage, victim):
    ranks = start_by_hand('death_job.py', tmp_path, stage, victim)
    try:
        outputs = [rank.communicate(timeout=DEADLINE)[0] for rank in ranks]
    finally:
        for rank in ranks:
            end_group(rank)
    survivor = 1 - victim
    assert ranks[victim].returncode == -signal.SIGKILL, outputs[victim]
    assert ranks[survivor].returncode == 1, outputs[survivor]
    last = outputs[survivor].rstrip().splitlines()[-1]
    if stage == 'forward':
        # Met by DDP's own reduction, before there is anything to agree on.
        assert 'RuntimeError' in last
        return
    for words in (
        f'NanGuardError: rank {survivor} of 2: the ranks could not agree',
        'another rank has died or left',
        'Nothing of the update was applied',
        "first error in the other ranks' logs",
        'resume from the last checkpoint',
    ):
        assert words in last
    assert 'was the direct cause' in outputs[survivor]
    before, left = torch.load(tmp_path / 'survivor.pt', weights_only=True)
    assert before.keys() == left.keys()
    for name, tensor in left.items():
        if 'running' not in name and 'num_batches' not in name:
            assert torch.equal(tensor, before[name]), name
