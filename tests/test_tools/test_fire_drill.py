"""tools/fire_drill.py: a real drill, and its verdicts on made-up ones."""

import importlib
import json
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'digits' / 'drill_fp16.py')
SITES = ['input', 'activation', 'loss', 'grad', 'buffer']


@pytest.fixture()
def drill(monkeypatch):
    # Small nets in several processes: more threads make them slower.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module('fire_drill')


def shortened(work_dir):
    faults = [
        f'default_hooks.fire_drill.faults.{index}.iter={8 * index + 4}'
        for index in range(len(SITES))
    ]
    options = ['train_cfg.max_epochs=1', *faults]
    return [CONFIG, '--work-dir', str(work_dir), '--cfg-options', *options]


def test_drill_on_digits(drill, tmp_path, capsys):
    assert drill.main(shortened(tmp_path)) == 0

    report = json.loads((tmp_path / 'fire_drill.json').read_text())
    assert report['passed']
    assert [(row['iter'], row['site']) for row in report['faults']] == [
        (4, 'input'),
        (12, 'activation'),
        (20, 'loss'),
        (28, 'grad'),
        (36, 'buffer'),
    ]
    assert all(row['action'] == 'skip' for row in report['faults'])
    blamed = {row['site']: row['blamed'] for row in report['faults']}
    assert blamed['grad'] == ['head.weight']
    assert blamed['buffer'] == ['backbone.0.bn.running_var']
    assert blamed['input'][0].startswith('digits/train/')

    guarded, calm, plain = report['runs']
    assert guarded['bad_weights'] == calm['bad_weights'] == []
    assert 'head.weight' in plain['bad_weights']
    assert min(guarded['accuracy'], calm['accuracy']) > 50
    assert plain['accuracy'] < 20  # of ten classes, one is left

    told = capsys.readouterr().out
    assert 'digits/train/' in told
    assert 'drill passed' in told
