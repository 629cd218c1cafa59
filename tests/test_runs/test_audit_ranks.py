"""Damage on one rank halts all of them, before it is saved."""

import json

import pytest
from ranks import launch, needs_fsdp


@pytest.mark.parametrize(
    ('way', 'where'),
    [
        ('ddp', 'weights'),
        ('ddp', 'optimizer'),
        pytest.param('local', 'weights', marks=needs_fsdp),
    ],
)
def test_all_ranks_halt_and_one_row_says_why(tmp_path, way, where):
    launch('audit_job.py', tmp_path, way, where)

    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    assert ranks[0] == ranks[1]
    assert (ranks[0]['iter'], ranks[0]['ranks']) == (8, [1])
    (path,) = tmp_path.glob('*/nanguard/events.jsonl')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row['kind'] != 'update']
    assert [row['kind'] for row in rows] == ['start', 'audit', 'halt']
    audit = rows[1]
    assert (audit['ranks'], audit['where']) == ([1], [where])
    assert audit['checkpoint'] == 'iter_8.pth'
    (bad,) = audit['tensors']
    name = 'net.3.bias'
    assert bad['name'] == name + ' exp_avg' * (where == 'optimizer')
    left = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert left == ['iter_4.pth'] + ['own.pth'] * (way == 'ddp')
    pointer = tmp_path / 'last_clean_checkpoint'
    assert pointer.read_text() == str(tmp_path / 'iter_4.pth')
