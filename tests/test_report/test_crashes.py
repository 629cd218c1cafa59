"""The report names what was not finite before a run, and when it crashed."""

import math

import pytest
import torch
from event_rows import start, update, write_events
from mmengine.hooks import Hook
from toys import (
    ToyNet,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.hooks.events.crash import find_bad_inputs
from mmnanguard.report import load_run
from mmnanguard.report.assessment import judge
from mmnanguard.report.summarize import summarize

FINISHED = dict(schema=1, kind='end', how='finished', iter=64, error='')


class Checks(ToyNet):
    """Raises an error itself when its outputs are NaN."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        masks = [s.get('mask', torch.ones(1)) for s in data_samples]
        checked = [*losses.values(), *masks]
        if not all(torch.isfinite(tensor).all() for tensor in checked):
            raise ValueError('found invalid values:\n [nan]')
        return losses


class Spoil(Hook):
    """Makes a parameter NaN."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 5:
            next(runner.model.parameters()).data.fill_(torch.nan)


def crash(work_dir, data=None, **settings):
    runner = make_runner(
        work_dir,
        wrapper(),
        model=Checks(),
        default_hooks=guard_hooks(),
        train_dataloader=loader(data or make_data(64)),
        **settings,
    )
    with pytest.raises(ValueError, match='invalid'):
        runner.train()
    (row,) = read_rows(runner, 'end')
    return row, load_run(str(work_dir)).verdict


@pytest.mark.parametrize('key', ['inputs', 'data_samples'])
def test_a_crash_names_the_sample_that_is_not_finite(tmp_path, key):
    data = make_data(64)
    nan = torch.full((3, 8, 8), math.nan)
    if key == 'inputs':
        data[21]['inputs'] = nan
    else:
        data[21]['data_samples'].set_data(dict(mask=nan))
    row, verdict = crash(tmp_path, data)
    assert row['bad_inputs'] == {key: ['train/000021.jpg']}
    assert row['bad_params'] == []
    words = f"'{key}' of sample 'train/000021.jpg' is NaN or Inf"
    assert f'invalid values; {words}; next: look at' in verdict.sentence


def test_a_crash_names_the_parameter_that_is_not_finite(tmp_path):
    row, verdict = crash(tmp_path, custom_hooks=[Spoil()])
    assert row['bad_inputs'] == {}
    (name,) = row['bad_params']
    assert f"parameter '{name}' is NaN or Inf" in verdict.sentence
    assert verdict.steps[0].text == 'resume from a clean checkpoint'


def test_bad_weights_of_a_checkpoint_lead_to_the_clean_ones(tmp_path):
    origin = 'as the loaded checkpoint iter_5.pth already had it'
    event = update(
        1, 'weight_nonfinite', 'head.weight', action='halt', origin=origin
    )
    write_events(tmp_path / '20260101_000000', [start(), event])
    step = load_run(str(tmp_path)).verdict.steps[0]
    assert step.code.startswith('python -m mmnanguard scan_checkpoints ')


def test_a_bad_batch_of_unknown_samples():
    nan = torch.tensor([[1.0, math.nan], [1.0, 1.0]])
    batch = dict(inputs=torch.ones(2, 3), table=nan.T[None], ids=[1, 2])
    assert find_bad_inputs(batch, 7) == {'table': ()}
    batch = dict(inputs=nan, mask=torch.ones(2))
    assert find_bad_inputs(batch, 7) == {'inputs': ('batch 7, row 0',)}
    # Its elements belong to no known rows.
    batch = dict(inputs=nan.to_sparse(), mask=torch.ones(2))
    assert find_bad_inputs(batch, 7) == {'inputs': ()}
    assert find_bad_inputs(None, 7) == {}


@pytest.mark.parametrize(
    ('names', 'advice'),
    [
        (["'a exp_avg' (optimizer)"], "without the optimizer's state"),
        (["'a' (weights)", "'a exp_avg' (optimizer)"], 'clean checkpoint'),
    ],
)
def test_a_bad_checkpoint_is_told_although_updates_are_fine(names, advice):
    bad = start(41, loaded='iter_40.pth', loaded_bad=names)
    verdict = judge(summarize([bad, FINISHED], 64))
    assert verdict.sentence.startswith(
        'the checkpoint iter_40.pth that it loaded before iteration 41 is bad'
    )
    assert advice in verdict.sentence
    assert not verdict.is_healthy
    # A clean one was resumed since.
    rows = [bad, start(41, attempt=2), FINISHED]
    assert judge(summarize(rows, 64)).is_healthy
