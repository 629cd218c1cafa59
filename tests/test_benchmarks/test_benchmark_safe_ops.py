import itertools
import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn, 'RMSNorm'),
    reason='what it compares with, torch.nn.RMSNorm, needs torch>=2.4',
)
BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def benchmark_safe_ops(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import benchmark_safe_ops

    return benchmark_safe_ops


def test_each_operation_is_a_row_in_each_dtype(
    benchmark_safe_ops, tmp_path, capsys
):
    file = tmp_path / 'safe.json'
    tiny = ['--samples', '1', '--dims', '8', '--repeat', '2']

    status = benchmark_safe_ops.main(
        [*tiny, '--device', 'cpu', '--markdown', '--json', str(file)]
    )

    assert status == 0
    report = json.loads(file.read_text())
    assert '1 x 64 tokens of 8' in report['machine']
    names = benchmark_safe_ops.make_cases(8, torch.float32)
    kinds = [(row['operation'], row['dtype']) for row in report['rows']]
    assert kinds == list(itertools.product(names, ('fp32', 'bf16')))
    out = capsys.readouterr().out
    for row in report['rows']:
        assert row['ratio_p10'] <= row['ratio'] <= row['ratio_p90']
        assert row['plain_ms'] > 0
        assert f'| {row["operation"]} ' in out


def test_both_sides_compute_the_same(benchmark_safe_ops):
    """Compare the plain and the safe layers, except those with weights of
    their own.
    """
    x = torch.randn(2, 64, 8)
    mask = torch.arange(64).expand(2, -1) < 50
    for name, (plain, safe) in benchmark_safe_ops.make_cases(
        8, torch.float32
    ).items():
        if name not in ('SafeAdaLNZero', 'SafeAttention'):
            got, want = safe(x, x.abs(), mask), plain(x, x.abs(), mask)
            assert torch.allclose(got, want, atol=1e-4), name
