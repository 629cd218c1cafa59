import importlib
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('benchmark')


@pytest.fixture
def sides(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('update_sides').SIDES


@pytest.fixture
def parameter_sets(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('parameter_sets').PARAMETER_SETS


def test_each_combination_is_one_row(benchmark, tmp_path, capsys):
    file, picture = tmp_path / 'update.json', tmp_path / 'update.svg'
    options = ['--params', 'tiny', '--device', 'cpu', '--markdown']
    options += ['--json', str(file), '--picture', str(picture)]
    options += ['--clips', 'above', '--optimizers', 'SGD', 'fused AdamW']

    status = benchmark.main([*options, '--repeat', '2'])

    assert status == 0
    report = json.loads(file.read_text())
    assert 'torch' in report['machine']
    rows = report['rows']
    kinds = {tuple(row[key] for key in benchmark.KEYS) for row in rows}
    assert kinds == {
        ('tiny', 'fp32', 'SGD', 'above'),
        ('tiny', 'fp32', 'fused AdamW', 'above'),
        ('tiny', 'fp16', 'SGD', 'above'),
        ('tiny', 'fp16', 'fused AdamW', 'above'),
    }
    assert len(rows) == len(kinds)
    assert capsys.readouterr().out.count('| tiny') == len(rows)
    assert '</svg>' in picture.read_text()


@pytest.mark.parametrize('is_fp16', [False, True])
@pytest.mark.parametrize('clip', [None, 1.0])
def test_all_sides_make_the_same_update(sides, parameter_sets, clip, is_fp16):
    model = parameter_sets['tiny']()
    grads = [torch.randn_like(param) for param in model.parameters()]
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    weights = {}

    for name, build in sides.items():
        if name in ('accelerate', 'Lightning') and not find_spec(name.lower()):
            continue  # where it is installed, that is enough
        side = build((model, grads, sgd, clip, is_fp16))
        for _ in range(3):
            side.prepare()
            side.run()
        weights[name] = torch.cat([p.detach().flatten() for p in side.params])

    if clip:  # the bare step has none
        assert not torch.equal(weights.pop('bare step'), weights['MMEngine'])
    for name, values in weights.items():
        torch.testing.assert_close(values, weights['MMEngine'], msg=name)


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

    sides = benchmark.measure_update(kind, repeat=1, device='cpu')['sides']

    assert sides['mmnanguard']['reads'] == 1
    assert sides['MMEngine']['reads'] == plain_reads
    assert sides['isnan loop']['reads'] >= 4  # one a parameter


def test_memory_is_the_copy_of_buffers_and_a_few_bytes_a_tensor(
    benchmark, parameter_sets
):
    model = parameter_sets['resnet50']()
    kind = ('resnet50', 'fp32', 'SGD', 'above')

    sides = benchmark.measure_update(kind, repeat=1, device='cpu')['sides']

    guarded, plain = sides['mmnanguard'], sides['MMEngine']
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    num_params = len(list(model.parameters()))
    # A float32 norm tells what was not finite before the first update.
    kept = buffers + 4 * num_params
    assert guarded['bytes_kept'] - plain['bytes_kept'] == kept
    num_tensors = num_params + len(list(model.buffers()))
    assert guarded['peak_bytes'] < plain['peak_bytes'] + 64 * num_tensors


@pytest.mark.parametrize(
    ('name', 'num_tensors', 'num_elements'),
    [
        ('resnet50', 161, 25_557_032),
        ('vit-b', 152, 86_567_656),
        ('swin-t', 173, 28_288_354),
    ],
)
def test_models_have_the_tensors_that_they_are_known_for(
    parameter_sets, name, num_tensors, num_elements
):
    params = list(parameter_sets[name]().parameters())

    assert len(params) == num_tensors
    assert sum(param.numel() for param in params) == num_elements
