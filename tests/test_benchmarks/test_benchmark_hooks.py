import argparse
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def benchmark_hooks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import benchmark_hooks

    return benchmark_hooks


@pytest.fixture
def args():
    return argparse.Namespace(model='small', batch_size=2)


def test_each_hook_is_one_row(benchmark_hooks, tmp_path, capsys):
    file = tmp_path / 'hooks.json'
    tiny = ['--model', 'small', '--batch-size', '2', '--image-size', '8']
    options = ['--repeat', '2', '--markdown', '--json', str(file)]

    status = benchmark_hooks.main([*tiny, *options])

    assert status == 0
    report = json.loads(file.read_text())
    assert 'torch' in report['machine']
    assert 'small, 2 images of 8 x 8' in report['machine']
    rows = report['rows']
    assert [row['hooks'] for row in rows] == list(benchmark_hooks.SIDES)
    out = capsys.readouterr().out
    for row in rows:
        assert row['ms'] > 0
        for key in ('to_mmengine', 'to_guard'):
            assert row[f'{key}_p10'] <= row[key] <= row[f'{key}_p90']
        assert f'| {row["hooks"]} ' in out
    assert rows[0]['to_mmengine'] == rows[1]['to_guard'] == 1
    assert rows[1]['more_ms'] == 0
    reads = {row['hooks']: row['reads'] for row in rows}
    assert reads['guard alone'] == reads["MMEngine's wrapper"] + 1


def test_all_train_the_same_on_the_same(benchmark_hooks, args, tmp_path):
    data = benchmark_hooks.Images(8, 8)
    seen = []
    for name in benchmark_hooks.SIDES:
        runner = benchmark_hooks.make_side(name, args, data, tmp_path)
        batches = [next(runner.train_loop.dataloader_iterator) for _ in '12']
        for batch in batches:
            runner.train_loop.run_iter(batch)
        assert runner.iter == 2
        is_plain = type(runner.optim_wrapper).__name__ == 'OptimWrapper'
        assert is_plain == (name == "MMEngine's wrapper")
        hooks = {f'mmnanguard.{type(hook).__name__}' for hook in runner.hooks}
        assert hooks >= {
            hook['type'] for hook in benchmark_hooks.SIDES[name].hooks
        }
        paths = []
        for batch in batches:
            paths += [sample.img_path for sample in batch['data_samples']]
        if benchmark_hooks.SIDES[name].clip is None:
            seen.append((paths, runner.model.state_dict()))
    for paths, state in seen[1:]:
        assert paths == seen[0][0]
        for key, tensor in state.items():
            assert torch.equal(tensor, seen[0][1][key]), key


def test_resnet18_has_the_parameters_that_it_is_known_for(benchmark_hooks):
    model = benchmark_hooks.ResNet(benchmark_hooks.MODELS['resnet18'])

    assert sum(p.numel() for p in model.parameters()) == 11_173_962
