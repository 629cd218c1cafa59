"""The lines of a run: short ones, the culprit in them, and no idle numbers."""

import ast
import json
import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from contracts import HOOK_NAMES, hook_config
from mmengine.structures import BaseDataElement
from toys import guard_hooks, make_data, make_runner, read_rows, wrapper

import mmnanguard
from mmnanguard._support.console_line import WIDTH
from mmnanguard.core import TrainingHalted

PACKAGE = Path(mmnanguard.__file__).parent
# MMEngine's own part of a line, with the place of the code for an error.
PREFIX = re.compile(
    r'^\d{4}/\d\d/\d\d [\d:]+ - mmengine - [A-Z]+ - (?:/\S+ - \w+ - \d+ - )?'
)
FOLDER = 'a/folder/with/a/long/name/' * 8
# Levels that a console shows. An exception brings its own lines.
LOGGING = r'logger\.(info|warning|error|log)$'


def log_lines(runner):
    """Return the lines of the log without MMEngine's prefix."""
    (path,) = Path(runner.log_dir).glob('*.log')
    return [PREFIX.sub('', line) for line in path.read_text().splitlines()]


def own_lines(runner):
    """Return the lines that the guard and its hooks have logged."""
    lines = log_lines(runner)
    start = next(i for i, line in enumerate(lines) if 'mmnanguard 0' in line)
    pattern = re.compile(r'Iter \d|mmnanguard|fire drill|training halted|  \S')
    return [line for line in lines[start:] if pattern.match(line)]


def long_named_data(size, *bad):
    """Return samples with long names, of which some have NaN."""
    data = make_data(size)
    for index, item in enumerate(data):
        name = f'{FOLDER}{index:06d}.jpg'
        label = item['data_samples'].label
        item['data_samples'] = BaseDataElement(
            metainfo=dict(img_path=name), label=label
        )
        if index in bad:
            item['inputs'] = torch.full_like(item['inputs'], math.nan)
    return data


def train(work_dir, *hooks, faults=(), bad=(), guard=(), **changes):
    names = {name: hook_config(name) for name in hooks}
    default_hooks = {**guard_hooks(*faults), **names}
    changes.setdefault('optim_wrapper', wrapper(guard=dict(guard)))
    runner = make_runner(work_dir, default_hooks=default_hooks, **changes)
    data = long_named_data(40, *bad)
    runner._train_dataloader['dataset'] = data
    with suppress(TrainingHalted):
        runner.train()
    return runner


FAULTS = [
    dict(iter=3, site='activation', value='nan'),
    dict(iter=5, site='grad', value='inf'),
    dict(iter=6, site='buffer', value='nan'),
    dict(iter=8, site='weight', value='nan'),
]
ALL = [name for name in HOOK_NAMES if name != 'FaultInjectionHook']
RUNS = {
    'faults with all hooks': dict(hooks=ALL, faults=FAULTS, bad=(2,)),
    'a streak that halts': dict(
        hooks=('AutopsyHook',),
        bad=range(40),
        guard=dict(max_consecutive_skips=3),
    ),
    'a streak that goes back': dict(
        hooks=('RollbackHook',),
        bad=range(16, 28),
        guard=dict(max_consecutive_skips=3, when_exhausted='rollback'),
    ),
    'spikes': dict(
        hooks=(),
        faults=[dict(iter=9, site='grad', value=1e6)],
        guard=dict(spike=dict(window=4, warmup=4)),
    ),
}


@pytest.mark.parametrize('settings', RUNS.values(), ids=RUNS.keys())
def test_no_line_is_longer_than_the_console(tmp_path, settings):
    settings = dict(settings)
    runner = train(tmp_path, *settings.pop('hooks'), **settings)
    lines = own_lines(runner)
    for line in lines:
        assert len(line) <= WIDTH, line
    # The line of an event stands for itself: it is not continued.
    for row in read_rows(runner):
        assert any(x.startswith(f'Iter {row["iter"]}') for x in lines)


@pytest.mark.parametrize('hooks', [(), ('InputGuardHook',)])
def test_the_first_line_names_the_bad_sample(tmp_path, hooks):
    runner = train(tmp_path, *hooks, bad=(6,))
    (row,) = read_rows(runner)
    assert row['bad_samples'] == [f'{FOLDER}000006.jpg']
    assert len(row['samples']) == 4
    line = next(line for line in own_lines(runner) if line[:4] == 'Iter')
    assert '000006.jpg' in line
    assert not re.search(r'00000[457]\.jpg', line)


def test_a_sample_that_was_found_once_is_known(tmp_path):
    """The second epoch has the same samples, and no hook looks at inputs."""
    runner = train(
        tmp_path, 'AutopsyHook', bad=(6,), max_iters=20, train_cfg=TWO_EPOCHS
    )
    first, second = read_rows(runner)
    assert first['bad_samples'] == second['bad_samples']


TWO_EPOCHS = dict(type='IterBasedTrainLoop', max_iters=20)


def test_counters_are_in_a_line_only_when_they_change(tmp_path):
    runner = train(tmp_path, faults=FAULTS[:1])
    shown = [line for line in log_lines(runner) if 'Iter(train)' in line]
    assert len(shown) == 10
    with_counters = [line for line in shown if 'guard/' in line]
    (line,) = with_counters
    assert line.startswith('Iter(train) [ 3/10]')
    assert line.endswith('guard/skipped: 1')
    assert 'loss_cls: ' in line
    # Dashboards have all of them.
    path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert [row['guard/skipped'] for row in rows] == [0] * 2 + [1] * 8
    assert all('guard/routine_overflows' in row for row in rows)


@pytest.mark.parametrize('has_hierarchy', [False, True])
def test_no_counter_in_a_healthy_run(tmp_path, has_hierarchy):
    runner = train(
        tmp_path,
        'StabilityMonitorHook',
        optim_wrapper=wrapper(
            clip_grad=dict(max_norm=0.1),
            guard=dict(lr_backoff=dict(above=1e9)),
        ),
        log_processor=dict(by_epoch=False, log_with_hierarchy=has_hierarchy),
    )
    assert not [line for line in log_lines(runner) if 'guard/' in line]
    # The processor is as it was.
    assert 'get_log_after_iter' not in vars(runner.log_processor)


def test_all_messages_go_one_way():
    """A single function, which limits lines, writes to a log."""
    for path in PACKAGE.rglob('*.py'):
        if path.name == '_console.py' or '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ''
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
            assert not re.search(LOGGING, name), f'{path}: {name}'
            assert name != 'print_log' or path.name == 'safe_load.py', path
