"""tools/audit_dataset.py, on digits among which 20 are bad."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from planted_digits import (
    CHECKS,
    LABELS,
    NAMES,
    PIXELS,
    PLANTED,
    PlantedDigits,
)
from ranks import launch

from tools.audit_dataset import main

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'audit_dataset.py'
CONFIG = f"""
_base_ = ['{ROOT}/configs/digits/guarded_fp32.py']
custom_imports = dict(imports=['planted_digits'])
train_dataloader = dict(dataset=dict(
    type='{PlantedDigits.__name__}', pipeline=[
        dict(type='RollDigits'), dict(type='KillLoader'),
        dict(type='PackDigits')]))
"""
ARGS = ['--checks', *map(str, CHECKS)]
ARGS += ['--key', 'inputs', 'data_samples.gt_label', 'inputs[0, 0, 0] * 2']


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'planted.py'
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """Return the folder of an audit that nothing has disturbed."""
    out = tmp_path_factory.mktemp('whole')
    assert main([config, *ARGS, '--out', str(out)]) == 1
    return out


def refuse(text):
    raise AssertionError(f'{text} is not JSON')


def read_report(out):
    text = (out / 'report.json').read_text()
    return json.loads(text, parse_constant=refuse)


def files(out):
    """Return all files for the reader of an audit, byte for byte."""
    return {
        path.name: path.read_bytes()
        for path in out.iterdir()
        if path.suffix != '.jsonl'
    }


def test_the_20_and_no_others(whole, config, capsys):
    assert main([config, *ARGS, '--out', str(whole)]) == 1
    message = f'20 of 1437 samples are bad; see {whole}'
    assert message in capsys.readouterr().out
    report = read_report(whole)
    assert [row['index'] for row in report['bad']] == PLANTED
    assert [row['name'] for row in report['bad']] == NAMES
    assert report['num_bad'] == 20
    # NaN and Inf are out of any range as well.
    assert report['failed'] == {'Finite': 10, 'Range': 20}
    (problem,) = report['bad'][PLANTED.index(1111)]['problems']
    assert problem['check'] == 'Range'
    text = 'data_samples.gt_label is 255: it must be from 0 to 9'
    assert problem['text'] == text
    listed = (whole / 'bad_samples.txt').read_text().splitlines()[1:]
    assert listed == [f'{i}\t{name}' for i, name in zip(PLANTED, NAMES)]


def test_distributions(whole):
    distributions = read_report(whole)['distributions']
    dataset = DATASETS.build(
        dict(type='PlantedDigits', split='train', pipeline=[])
    )
    pixels = np.stack([dataset[i]['img'] for i in range(len(dataset))])
    finite = pixels[np.isfinite(pixels)].astype(np.float64)
    seen = distributions['inputs']
    assert seen['count'] == finite.size
    assert seen['nonfinite'] == 10
    assert seen['missing'] == 0
    assert math.isclose(seen['mean'], finite.mean())
    assert math.isclose(seen['std'], finite.std())
    assert (seen['min'], seen['max']) == (finite.min(), finite.max())
    assert seen['min_sample'] == 'digits/train/001399'
    assert seen['max_sample'] == 'digits/train/000046'
    assert not seen['is_exact']
    for share, value in zip((0.25, 0.5, 0.75), seen['quartiles']):
        assert (finite < value).mean() <= share + 1 / 64
        assert (finite <= value).mean() >= share - 1 / 64

    labels = [dataset[i]['gt_label'] for i in range(len(dataset))]
    seen = distributions['data_samples.gt_label']
    assert seen['is_exact']
    method = dict(method='inverted_cdf')
    right = np.quantile(labels, (0.25, 0.5, 0.75), **method).tolist()
    assert seen['quartiles'] == right
    counts, edges = np.histogram(labels, bins=50)
    assert seen['histogram']['counts'] == counts.tolist()
    assert seen['histogram']['edges'] == edges.tolist()
    for key in distributions.values():
        assert (whole / key['picture']).read_bytes().startswith(b'\x89PNG')


def test_killed_and_resumed_is_the_same(whole, config, tmp_path):
    killed = tmp_path / 'killed'
    args = [config, *ARGS, '--out', str(killed)]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(sys.path),
        KILL_FLAG=str(tmp_path / 'flag'),
    )
    command = [sys.executable, '-W', 'ignore', TOOL, *args]
    done = subprocess.run(
        [*command, '--num-workers', '1'], env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (killed / 'report.json').exists()
    rows = killed / 'rows_rank0.jsonl'
    num_rows = rows.read_bytes().count(b'"index"')
    assert 700 <= num_rows <= 800
    with rows.open('ab') as file:
        file.write(b'{"index": 800, "name": "half a l')
    assert main(args) == 1
    # None was done twice.
    assert rows.read_bytes().count(b'"values"') == 1437
    assert files(killed) == files(whole)


@pytest.fixture(scope='module')
def ranks(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    job = 'bad_samples_job.py'
    launch(job, config, folder / 'shards', folder / 'run', *ARGS)
    return folder


def test_sharded_is_the_same(whole, ranks):
    shards = ranks / 'shards'
    rows = [shards / f'rows_rank{rank}.jsonl' for rank in (0, 1)]
    counts = [path.read_bytes().count(b'"values"') for path in rows]
    assert counts == [719, 718]
    assert files(shards) == files(whole)


def test_ranks_tell_of_what_their_workers_drop(ranks):
    run = ranks / 'run'
    results = [
        json.loads((run / f'rank_{rank}.json').read_text()) for rank in (0, 1)
    ]
    names_of_ranks = [set(result['own']) for result in results]
    assert all(0 < len(names) < 20 for names in names_of_ranks)
    assert names_of_ranks[0] | names_of_ranks[1] == set(NAMES)
    assert [result['told'] for result in results] == [20, 20]
    (log,) = run.glob('*/*.log')
    log_lines = [
        x for x in log.read_text().splitlines() if 'bad samples so' in x
    ]
    assert 'found 20 bad samples so far' in log_lines[-1]
    new = [
        int(re.findall(r'(\d+) of them new', line)[0]) for line in log_lines
    ]
    assert len(new) > 1
    assert sum(new) == 20  # each is told once
    assert ': left out and ' in ''.join(log_lines)
    (events,) = run.glob('*/nanguard/events.jsonl')
    assert '"update"' not in events.read_text()
    assert not any(Path(result['record']).exists() for result in results)


def test_the_list_makes_training_clean(whole, config, tmp_path):
    cfg = Config.fromfile(config)
    inner = cfg.train_dataloader.dataset
    # Without the audit's list, but for what cross-entropy cannot take.
    lists = {'without': sorted(LABELS), 'with': str(whole / 'bad_samples.txt')}
    events = {}
    for name, samples in lists.items():
        cfg.train_dataloader.dataset = dict(
            type='mmnanguard.ExcludeSamples', dataset=inner, samples=samples
        )
        cfg.work_dir = str(tmp_path / name)
        cfg.experiment_name = name
        cfg.train_cfg.max_epochs = 1
        runner = Runner.from_cfg(cfg)
        runner.train()
        path = Path(runner.log_dir, 'nanguard', 'events.jsonl')
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        events[name] = [row for row in rows if row['kind'] == 'update']
    assert events['with'] == []
    assert {row['action'] for row in events['without']} == {'skip'}
    assert len(events['without']) >= 5
    blamed = set().union(*(row['samples'] for row in events['without']))
    assert blamed & {f'digits/train/{index:06d}' for index in PIXELS}


def audit_small(folder, pipeline, *args):
    """Audit the first 40 samples; return the exit status and the report."""
    config = folder / 'small.py'
    small = dict(type='PlantedDigits', indices=40, pipeline=pipeline)
    head = CONFIG.split('train_dataloader')[0]
    config.write_text(f'{head}train_dataloader = dict(dataset={small})')
    out = folder / 'small'
    status = main([str(config), '--out', str(out), *args])
    return status, read_report(out) if status != 2 else None


def test_the_pipelines_own_findings(tmp_path):
    """A sample that raises is bad, a dropped one is reported, and the
    pipeline's own ValidateSample hides nothing.
    """
    label = dict(type='Range', key='gt_label', min=0, max=9)
    pipeline = [
        dict(type='Mishap', raises=[5], drops=[6, 7]),
        dict(type='mmnanguard.ValidateSample', checks=[label]),
        dict(type='PackDigits'),
    ]
    status, report = audit_small(
        tmp_path, pipeline, '--strict', '--num-workers', '2'
    )
    assert status == 1
    problems = {row['index']: row['problems'] for row in report['bad']}
    assert problems[5] == [
        dict(check='pipeline', text='OSError: truncated file')
    ]
    text = 'gt_label is -100: it must be from 0 to 9'
    assert problems[8] == [dict(check='Range', text=text)]
    assert sorted(problems) == [0, 5, 8, 17]
    assert [row['index'] for row in report['dropped']] == [6, 7]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--checks', 'Finit'], "did you mean 'Finite'"),
        (['--key', 'data_samples.gt_labels'], "mean 'data_samples.gt_label'"),
        (['--key', 'a b'], 'neither a key nor an expression'),
        (['--key', 'data_samples.img_path'], 'holds no numbers'),
        (['--checks', "dict(type='Range', key='mask', min=0)"], "no 'mask'"),
        (['--dataloader', 'test'], 'has no test_dataloader'),
        (['--cfg-options', 'train_dataloader.dataset.split=x'], 'split is'),
        (['--cfg-options', 'train_dataloader.dataset.type=Lost'], 'Lost'),
        (['--cfg-options', 'train_dataloader=5'], 'AttributeError'),
        (['--out', '/dev/null/x'], 'NotADirectoryError'),
        (['--cfg-options', 'env_cfg.mp_cfg.start=x'], "argument 'start'"),
    ],
)
def test_mistakes(tmp_path, capsys, args, message):
    pipeline = [dict(type='PackDigits')]
    assert audit_small(tmp_path, pipeline, *args) == (2, None)
    assert message in capsys.readouterr().err


def test_another_audit_is_not_resumed(tmp_path, capsys, monkeypatch):
    pipeline = [dict(type='PackDigits')]
    assert audit_small(tmp_path, pipeline)[0] == 1
    monkeypatch.chdir(tmp_path)
    assert audit_small(Path(), pipeline)[0] == 1  # the same file
    assert audit_small(tmp_path, pipeline, '--key', 'inputs')[0] == 2
    assert "another keys: [], not ['inputs']" in capsys.readouterr().err
    pipeline.insert(0, dict(type='RollDigits'))
    assert audit_small(tmp_path, pipeline)[0] == 2
    assert 'another dataset' in capsys.readouterr().err


@pytest.mark.parametrize(
    'args', [['--checks', 'dict('], ['--seed', '-1'], ['--num-workers', '-1']]
)
def test_a_wrong_command_line(args):
    with pytest.raises(SystemExit) as error:
        main(['config.py', *args])
    assert error.value.code == 2
