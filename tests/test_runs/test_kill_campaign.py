"""A sample of tests/campaign_kill.py: one run of each kind but one."""

import json

from ranks import TESTS, finish, start


def test_killed_runs_equal_the_uninterrupted_one(tmp_path):
    outcome = tmp_path / 'outcome.json'
    process = start(
        [TESTS / 'campaign_kill.py', '--runs', 3, '--json', outcome]
    )
    output = finish(process)
    assert process.returncode == 0, output
    assert '3 of 3 equal the uninterrupted run' in output
    runs = json.loads(outcome.read_text())
    assert [run['wrong'] for run in runs] == [[], [], []]
    assert sum(run['kills'] for run in runs) > 0
