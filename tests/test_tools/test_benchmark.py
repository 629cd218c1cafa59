import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import benchmark

    return benchmark


def test_each_combination_is_one_row(benchmark, tmp_path, capsys):
    file = tmp_path / 'update.json'
    options = ['--params', 'tiny', '--device', 'cpu', '--markdown']

    status = benchmark.main([*options, '--repeat', '2', '--json', str(file)])

    assert status == 0
    report = json.loads(file.read_text())
    assert 'torch' in report['machine']
    rows = report['rows']
    kinds = {tuple(row[key] for key in benchmark.KEYS) for row in rows}
    assert kinds == {
        ('tiny', precision, optimizer, clip)
        for precision in ('fp32', 'fp16')
        for optimizer in ('SGD', 'AdamW', 'fused AdamW')
        for clip in ('none', 'above')
    }
    assert len(rows) == len(kinds)
    assert capsys.readouterr().out.count('| tiny') == len(rows)


@pytest.mark.parametrize(
    ('precision', 'optimizer', 'clip', 'plain_reads'),
    [
        ('fp32', 'SGD', 'none', 0),
        ('fp32', 'SGD', 'above', 1),  # float(norm), for the log
        ('fp16', 'SGD', 'none', 1),  # found_inf.item()
        ('fp16', 'SGD', 'below', 2),
        ('fp16', 'fused AdamW', 'none', 0),  # its kernel reads found_inf
        ('fp16', 'fused AdamW', 'above', 1),
    ],
)
def test_a_guarded_update_reads_once(
    benchmark, precision, optimizer, clip, plain_reads
):
    kind = ('tiny', precision, optimizer, clip)

    row = benchmark.measure_update(kind, repeat=1, device='cpu')

    assert row['guarded_reads'] == 1
    assert row['plain_reads'] == plain_reads


def test_resnet50_has_the_tensors_that_it_is_known_for(benchmark):
    model = benchmark.build_resnet50(has_buffers=True)

    params = list(model.parameters())
    assert len(params) == 161
    assert sum(param.numel() for param in params) == 25_557_032
    assert len(list(model.buffers())) == 3 * 53
