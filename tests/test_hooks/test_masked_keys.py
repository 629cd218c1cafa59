"""Inputs that are not finite on purpose, and objects that hold tensors."""

import math

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn
from toys import guard_hooks, loader, make_runner, read_rows, wrapper

from mmnanguard.core import Action, Autopsy, Cause, GuardEvent
from mmnanguard.core.diagnosis import diagnose
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.datasets.checks import Finite
from mmnanguard.hooks.inputs.input_check import InputCheck, bad_samples
from mmnanguard.hooks.inputs.input_policy import InputPolicy
from mmnanguard.hooks.inputs.masked_keys import NUM_PROOFS, MaskedKeys

NAN = float('nan')
KEY = 'data_samples.gt.boxes.tensor'


class Boxes:
    """A tensor in an object, as mmdet's boxes are."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    @property
    def areas(self):
        raise AssertionError('a property must not run')


class Detector(BaseModel):
    """A model that leaves NaN out of its loss, but not a NaN in a label."""

    def __init__(self):
        super().__init__(BaseDataPreprocessor())
        self.head = nn.Linear(4, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = self.head(torch.stack(list(inputs)))
        targets = torch.stack([s.gt.boxes.tensor[0] for s in data_samples])
        is_known = ~torch.isnan(targets)
        errors = (outputs - torch.nan_to_num(targets)).abs() * is_known
        weights = torch.stack([s.gt.weight[0] for s in data_samples])
        return dict(loss=(errors.sum(1) * weights).mean())


def make_data(size, bad_weights=()):
    data = []
    for index in range(size):
        boxes = torch.full((1, 4), 0.1 * index)
        boxes[:, 3] = NAN
        weight = torch.tensor([NAN if index in bad_weights else 1.0])
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        sample.gt = InstanceData(boxes=Boxes(boxes), weight=weight)
        data.append(dict(inputs=torch.ones(4), data_samples=sample))
    return data


class Paths(BaseModel):
    """A sum over paths, of which each sample rules some out with -inf."""

    def __init__(self):
        super().__init__(BaseDataPreprocessor())
        self.head = nn.Linear(4, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(list(inputs))
        scores = self.head(inputs[:, :4]) + inputs[:, 4:]
        total = torch.logsumexp(scores, 1)
        # The gradient of what is left out here is NaN all the same.
        return dict(loss=torch.where(total.isfinite(), total, 0.0).mean())


def make_paths(size, impossible):
    data = []
    for index in range(size):
        inputs = torch.ones(7)
        inputs[6 if index != impossible else slice(4, 7)] = -math.inf
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        data.append(dict(inputs=inputs, data_samples=sample))
    return data


def run(
    work_dir, bad_weights=(), more_hooks=(), model=None, data=None, **keys
):
    hooks = guard_hooks()
    hooks.update(more_hooks)
    hooks['inputs'] = dict(type='mmnanguard.InputGuardHook', **keys)
    runner = make_runner(
        work_dir,
        wrapper(lr=0.01),
        model=model or Detector(),
        max_iters=8,
        default_hooks=hooks,
        train_dataloader=dict(
            loader(data or make_data(32, bad_weights)),
            collate_fn=dict(type='pseudo_collate'),
        ),
    )
    runner.train()
    log = next(work_dir.glob('*/*.log')).read_text()
    return runner, log


def test_rejects_until_the_model_is_seen_to_mask(tmp_path):
    runner, log = run(tmp_path)
    iters = [row['iter'] for row in read_rows(runner)]
    assert iters == [1, 2, 3]
    assert log.count('THE MODEL MASKS') == 1
    assert KEY in log[log.index('THE MODEL MASKS') :]


@pytest.mark.parametrize(('norm', 'is_proof'), [(1.0, True), (NAN, False)])
def test_only_finite_gradients_prove_a_mask(norm, is_proof):
    masked = MaskedKeys()
    event = GuardEvent(
        iter=1, cause=Cause.INPUT_NONFINITE, action=Action.SKIP, grad_norm=norm
    )
    for _ in range(NUM_PROOFS):
        masked.note_rejected(event, {KEY: ('a',)})
    assert masked.proven == ({KEY} if is_proof else set())


HOOKS = dict(autopsy=dict(type='mmnanguard.AutopsyHook'))


def test_an_autopsy_and_the_report_see_the_mask(tmp_path):
    runner, log = run(tmp_path, more_hooks=HOOKS)
    (row,) = read_rows(runner, 'autopsy')
    assert not row['repeats']
    assert row['keys'] == [KEY]
    assert f"finite although '{KEY}' is not; the model may mask it" in log
    assert 'transient' not in log
    evidence = Evidence(
        'input_nonfinite',
        list(map(record_of, read_rows(runner))),
        [record_of(row)],
        list(map(record_of, read_rows(runner, 'input'))),
    )
    diagnosis = diagnose(evidence)
    assert 'mask' in diagnosis.advice.long
    assert diagnosis.samples == ()


def test_goes_on_rejecting_a_key_that_is_asked_for(tmp_path):
    runner, log = run(tmp_path, keys=[KEY])
    assert len(read_rows(runner)) == 8
    assert 'goes on rejecting' in log


def test_explains_what_went_bad(tmp_path):
    runner, log = run(tmp_path, bad_weights=[17], action='explain')
    (row,) = read_rows(runner)
    assert (row['iter'], row['cause']) == (5, 'loss_nonfinite')
    (input_row,) = read_rows(runner, 'input')
    assert input_row['id'] == row['id']
    assert input_row['keys']['data_samples.gt.weight'] == ['17.jpg']
    # Committed updates had NaN there as well.
    assert input_row['usual'] == [KEY]
    assert 'the model seems to mask it' in log


def test_a_mask_in_each_sample_does_not_hide_the_derivative(tmp_path):
    runner, log = run(
        tmp_path,
        more_hooks=HOOKS,
        model=Paths(),
        data=make_paths(32, impossible=17),
        action='explain',
    )
    (row,) = read_rows(runner)
    (input_row,) = read_rows(runner, 'input')
    assert input_row['usual'] == ['inputs']
    (autopsy,) = read_rows(runner, 'autopsy')
    assert autopsy['phase'] == 'backward'
    assert autopsy['derivative'] == 'logsumexp'
    assert autopsy['samples'] == ['17.jpg']
    assert "sample '17.jpg': " in log
    assert 'got nothing but -inf' in Autopsy.from_row(autopsy).sentence()
    assert 'to begin with' not in log
    diagnosis = diagnose(
        Evidence(
            row['cause'],
            [record_of(row)],
            [record_of(autopsy)],
            [record_of(input_row)],
        )
    )
    assert diagnosis.samples == ('17.jpg',)


def test_checks_and_sanitizes_a_tensor_in_an_object():
    (item,) = make_data(1)
    sample = item['data_samples']
    batch = dict(inputs=[torch.ones(4)], data_samples=[sample])
    check = InputCheck(batch, batch, 0, InputPolicy())
    assert bad_samples([check.flags]) == {KEY: ['0.jpg']}
    check = InputCheck(batch, batch, 0, InputPolicy('sanitize'))
    clean = check.output['data_samples'][0].gt.boxes
    assert torch.isfinite(clean.tensor).all()
    assert torch.isnan(sample.gt.boxes.tensor).any()


@pytest.mark.filterwarnings('ignore')
def test_checks_numbers_of_another_form():
    bad = torch.tensor([[1.0, NAN]])
    batch = dict(
        complex=bad.to(torch.complex64),
        sparse=bad.to_sparse(),
        float8=bad.to(torch.float8_e4m3fn),
        quantized=torch.quantize_per_tensor(bad, 1.0, 0, torch.qint8),
    )
    check = InputCheck(batch, batch, 0, InputPolicy())
    bad_parts = bad_samples([check.flags])
    assert sorted(bad_parts) == ['complex', 'float8', 'sparse']


def test_the_audit_of_a_dataset_sees_it():
    (item,) = make_data(1)
    assert 'boxes.tensor' in Finite()(item)
