import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from torch.distributed import fsdp

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
ALONE = 15  # numbers of a rank that shares no parameter
PART = 3  # more of them where it does


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def network(tools):
    from collectives import Network

    return Network('slow', latency=100.0, bandwidth=0.5)


needs_fsdp2 = pytest.mark.skipif(
    not hasattr(fsdp, 'fully_shard'),
    reason='FSDP2, which it measures, too, needs torch>=2.6',
)


@needs_fsdp2
def test_a_clean_update_sends_one_message(tmp_path, capsys, monkeypatch):
    import benchmark_ranks

    monkeypatch.setenv('PYTHONWARNINGS', 'ignore')  # of the ranks
    report, picture = tmp_path / 'ranks.json', tmp_path / 'ranks.svg'
    tiny = ['--model', 'small', '--batch-size', '2', '--repeat', '2']
    options = [*tiny, '--ranks', '2', '--threads', '1', '--markdown']
    files = ['--json', str(report), '--picture', str(picture)]

    status = benchmark_ranks.main([*options, '--simulate', '2', '8', *files])

    assert status == 0
    report = json.loads(report.read_text())
    assert 'gloo' in report['machine']
    counts = {row['sharing']: row for row in report['counts']}
    assert [*counts] == ['ddp', 'fsdp1', 'fsdp2']
    for way, row in counts.items():
        # PyTorch adds the norms of FSDP2's parts up, to clip.
        assert row['plain_messages'] == (way == 'fsdp2')
        assert row['guarded_messages'] == 1
        assert row['alone_messages'] == row['alone_bytes'] == 0
        numbers = ALONE + PART * (way != 'ddp')
        assert row['guarded_bytes'] == row['ranks'] * numbers * 8
        assert row['message_ms'] > 0
    kinds = [(row['sharing'], row['span']) for row in report['times']]
    spans = ('update', 'iteration')
    assert kinds == list(itertools.product(counts, spans))
    for row in report['times']:
        for name in ('alone', 'plain'):
            ratio = row[f'to_{name}']
            assert row[f'{name}_p10'] <= ratio <= row[f'{name}_p90']
    for update, iteration in zip(*(report['times'][i::2] for i in (0, 1))):
        assert 0 < update['guarded_ms'] < iteration['guarded_ms']
    assert [row['bytes'] for row in report['more']] == 2 * [
        *[2 * 8 * (ALONE + PART)] * 3,
        *[8 * 8 * (ALONE + PART)] * 3,
    ]
    assert '| ddp ' in capsys.readouterr().out
    assert 'InfiniBand, ring' in picture.read_text()


@pytest.mark.parametrize(
    ('name', 'ms'),
    [  # 8 ranks, 4,000 bytes, which take 8 us, and messages 100 us
        ('ring', 14 * (0.1 + 0.001)),
        ('tree', 6 * (0.1 + 0.008)),
        ('halving', 6 * 0.1 + 2 * (0.004 + 0.002 + 0.001)),
    ],
)
def test_formulas_are_what_one_reckons_by_hand(network, name, ms):
    from collectives import predict

    assert predict(name, 8, 4000, network) == pytest.approx(ms)


def test_halves_are_halved_and_doubled():
    from collectives import halving

    sizes = [size for _, size in halving(8, 4000)]
    assert sizes == [2000, 1000, 500, 500, 1000, 2000]


@pytest.mark.parametrize('num_ranks', [2, 4, 8, 64])
@pytest.mark.parametrize('name', ['ring', 'tree', 'halving'])
def test_steps_take_what_the_formula_says(network, name, num_ranks):
    from collectives import predict, simulate

    job = (name, num_ranks, 4096, network)
    assert simulate(*job) == pytest.approx(predict(*job))
    rng = np.random.default_rng(0)
    late = [simulate(*job, 1.0, rng) for _ in range(5)]
    assert min(late) > predict(*job)
    assert len(set(late)) == 5


@pytest.mark.parametrize('num_ranks', [2, 4, 8, 64])
@pytest.mark.parametrize('name', ['ring', 'tree', 'halving'])
def test_all_hear_from_all(name, num_ranks):
    from collectives import ALGORITHMS

    heard = np.eye(num_ranks, dtype=bool)
    for senders, _ in ALGORITHMS[name][0](num_ranks, 1.0):
        heard |= heard[senders]
    assert heard.all()


def test_more_ranks_are_beside_gradients(network):
    from collectives import foresee

    rows = {row['algorithm']: row for row in foresee([network], [4], 96, 1.0)}

    assert {row['bytes'] for row in rows.values()} == {4 * 96}
    messages = {name: row['messages'] for name, row in rows.items()}
    assert messages == dict(ring=24, tree=6, halving=16)
    steps = {name: row['steps'] for name, row in rows.items()}
    assert steps == dict(ring=6, tree=4, halving=4)
    largest = 4 * 0.1 + 1.5 * 4 * 25_557_032 / 0.5e6  # halving, in ms
    for row in rows.values():
        assert row['gradients_ms'] == pytest.approx(largest)
        share = 100 * row['ms'] / largest
        assert math.isclose(row['percent'], share)
        assert row['late_ms'] > row['ms']


@needs_fsdp2
@pytest.mark.parametrize(
    'mistake',
    [
        ['--ranks', '1'],
        ['--simulate', '6'],
        ['--repeat', '0'],
        ['--ethernet', '50', '0'],
    ],
)
def test_mistakes_end_before_anything_starts(mistake, capsys):
    import benchmark_ranks

    with pytest.raises(SystemExit):
        benchmark_ranks.main(mistake)
    assert mistake[0] in capsys.readouterr().err
