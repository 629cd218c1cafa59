"""The five failures of configs/cases happen as its README documents them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

ROOT = Path(__file__).parents[2]
CASES = ROOT / 'configs' / 'cases'
NAMES = list(Config.fromfile(CASES / 'documented.py').to_dict())


@pytest.fixture(scope='module')
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        patch.syspath_prepend(ROOT / 'tools')
        import cases

        yield cases


@pytest.fixture(scope='module', params=NAMES)
def case(request, tool):
    """Return a case's name, and the outcomes of its runs."""
    return request.param, tool.run_case(request.param)


def test_it_comes_as_documented(case):
    _, outcomes = case
    differences = {
        name: came['differences'] for name, came in outcomes.items()
    }
    assert {name: wrong for name, wrong in differences.items() if wrong} == {}


def words_and_numbers(text):
    number = re.compile(r'\d+(?:\.\d+)?(?:e[+-]?\d+)?')
    return number.sub('#', text), [float(n) for n in number.findall(text)]


def test_the_readme_has_its_row(case, tool):
    """The row is compared except where the processor makes a difference.

    How often something overflows in float16, and so which samples are named,
    depends on the processor.
    """
    name, outcomes = case
    table = (CASES / 'README.md').read_text()
    (row,) = re.findall(rf'^\| {name} \|.*$', table, re.M)
    fresh = tool.markdown([tool.row_of(name, outcomes)]).splitlines()[-1]
    cells = zip(row.split(' | '), fresh.split(' | '))
    for column, (said, came) in enumerate(cells):
        (said, numbers), (came, others) = map(words_and_numbers, (said, came))
        if column == 4:  # culprits
            assert said.split(';')[0] == came.split(';')[0]
            continue
        assert said == came
        for number, other in zip(numbers, others):
            slack = 1 if number.is_integer() else 0.01
            assert number == pytest.approx(other, rel=0.5, abs=slack)


def test_until_it_goes_bad_the_guard_changes_nothing(case):
    name, outcomes = case
    if name in ('fp16_static_scale', 'masked_attention'):
        pytest.skip('clips and unscales in one, which rounds otherwise')
    plain, guarded = outcomes['plain']['losses'], outcomes['guarded']['losses']
    first = outcomes['guarded']['rows'][1]['iter']
    assert plain[: first - 1] == guarded[: first - 1]
    assert first > 40


def test_the_spoilt_sample_is_in_the_batch_that_is_named(case):
    """The config is the truth: it has the samples that it spoils."""
    name, outcomes = case
    cfg = Config.fromfile(CASES / name / 'plain.py')
    spoilt = cfg.train_dataloader.dataset.get('spoilt')
    if spoilt is None:
        pytest.skip('every sample overflows in the end')
    skipped = [
        {int(sample.split('/')[1]) for sample in row['samples']}
        for row in outcomes['guarded']['rows']
        if row['kind'] == 'update'
    ]
    assert skipped
    assert all(samples & {*spoilt} for samples in skipped)


def test_an_outcome_that_is_not_as_documented_is_told(
    tool, monkeypatch, capsys
):
    came = dict.fromkeys(
        ['raised', 'bad_from', 'first_nan', 'bad_moments', 'bad_buffers'], 0
    )
    came.update(dict.fromkeys(['lost', 'skips', 'events', 'top_loss'], 0))
    came.update(is_guarded=True, lr_left=1, error=0.1, bad_weights=0)
    came.update(culprit='', top_norm=1, late_norm=0.7)
    monkeypatch.setattr(tool, 'run', lambda path, folder: dict(came))
    assert tool.main(['exploding_gradient', '--runs', 'cured']) == 0
    assert 'NOT AS DOCUMENTED' not in capsys.readouterr().out
    came['events'] = 1
    assert tool.main(['exploding_gradient', '--runs', 'cured']) == 1
    output = capsys.readouterr().out
    assert 'exploding_gradient/cured: events is 1, documented is 0' in output


def test_each_config_is_documented():
    documented = Config.fromfile(CASES / 'documented.py')
    for name in NAMES:
        files = {path.stem for path in (CASES / name).glob('*.py')}
        modules = {
            path.split('.')[-1]
            for path in Config.fromfile(
                CASES / name / 'plain.py'
            ).custom_imports.imports
        }
        others = modules | {'old_1x', 'progress_bar'}
        assert files - others == set(documented[name])


def test_what_the_1x_keys_became():
    folder = CASES / 'fp16_static_scale'
    old = Config.fromfile(folder / 'old_1x.py')
    new = Config.fromfile(folder / 'guarded.py')
    assert new.optim_wrapper.type == 'mmnanguard.NanGuardAmpOptimWrapper'
    assert new.optim_wrapper.loss_scale == old.fp16.loss_scale
    assert new.optim_wrapper.clip_grad == old.optimizer_config.grad_clip
    assert new.optim_wrapper.optimizer == old.optimizer
    assert new.train_dataloader.batch_size == old.data.samples_per_gpu
    assert new.train_cfg.max_epochs == old.runner.max_epochs
    assert new.default_hooks.logger.interval == old.log_config.interval


def screen(text):
    """Return the lines that a terminal shows: text after a carriage return
    overwrites the line.
    """
    lines = []
    for line in text.split('\n'):
        shown = ''
        for part in line.split('\r'):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)
@pytest.mark.parametrize('is_shared', [True, False])
def test_a_progress_bar_does_not_garble_the_log(tmp_path, is_shared):
    command = [sys.executable, '-u', ROOT / 'tools' / 'train.py']
    command += [CASES / 'adam_depthwise_fp16' / 'progress_bar.py']
    command += ['--work-dir', tmp_path, '--cfg-options']
    command += [f'default_hooks.bar.is_shared={is_shared}', 'val_cfg=None']
    command += ['val_dataloader=None', 'val_evaluator=None']
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # a terminal shows both
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        check=False,
    )
    shown = screen(done.stdout.decode())
    log_lines = [line for line in shown if ' - mmengine - ' in line]
    assert done.returncode == 0, shown
    assert sum('WARNING - Iter' in line for line in log_lines) >= 2
    is_whole = [re.match(r'\d\d/\d\d [\d:]+ - mm', line) for line in log_lines]
    assert all(is_whole) == is_shared
    assert any('100/100' in line for line in shown)
