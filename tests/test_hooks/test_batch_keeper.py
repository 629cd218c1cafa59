"""Changes that training makes in a batch are undone before a replay."""

import collections
import threading

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from toys import (
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.hooks._shared.batch_samples import (
    sample_names,
    take_samples,
    tensors_of_samples,
)
from mmnanguard.hooks.replay import batch_keeper
from mmnanguard.hooks.replay.batch_keeper import BatchKeeper, same

ILL = 17  # the second sample of the fifth iteration


class Boxes:
    """An object of a user's, which is no known container."""

    def __init__(self, numbers):
        self.numbers = numbers


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 4, 4, generator=generator)
    return dict(
        inputs=list(images),
        array=np.full(3, 1.0 + seed),
        boxes=Boxes([seed]),
        data_samples=[
            BaseDataElement(
                metainfo=dict(img_path=f'{seed}.{index}.jpg', sizes=[1, 2]),
                label=torch.tensor([index]),
            )
            for index in range(4)
        ],
    )


# Each changes a batch in place, as training may.
def set_score(batch):
    for sample in batch['data_samples']:
        sample.gt_score = torch.ones(2)


def grow_score(batch):
    for sample in batch['data_samples']:
        sample.label = sample.label * 2


def normalize(batch):
    for image in batch['inputs']:
        image.sub_(1.0)


def mix(batch):
    first = batch['inputs'][0]
    first[:, :2] = batch['inputs'][1][:, :2]


def stack(batch):
    batch['inputs'] = torch.stack(batch['inputs']) + 1


def spoil_array(batch):
    batch['array'] *= 2


def spoil_boxes(batch):
    batch['boxes'].numbers.append(7)


def spoil_metainfo(batch):
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(img_shape=(1, 1)))
        sample.sizes.append(3)


CHANGES = [
    *(set_score, grow_score, normalize, mix, stack, spoil_array),
    *(spoil_boxes, spoil_metainfo),
]


def picture(value):
    """Return a description in builtins, which can be compared."""
    if isinstance(value, BaseDataElement):
        items = {**dict(value.items()), **value.metainfo}
        return {key: picture(item) for key, item in items.items()}
    if isinstance(value, dict):
        return {key: picture(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [picture(item) for item in value]
    if isinstance(value, Boxes):
        return value.numbers[:]
    return value.tolist() if hasattr(value, 'tolist') else value


@pytest.mark.parametrize('change', CHANGES)
def test_changes_are_undone(change):
    keeper = BatchKeeper()
    for number in range(6):  # half of them after it has learned
        batch = make_batch(number)
        before = picture(batch)
        kept = keeper.keep(batch)
        change(batch)
        keeper.compare(batch, kept)
        assert picture(batch) != before
        assert picture(kept.fresh()) == before
        assert picture(kept.fresh()) == before  # nor does a replay change it
        assert kept.is_exact


def test_what_does_not_change_is_not_copied():
    keeper = BatchKeeper()
    for number in range(4):
        batch = make_batch(number)
        kept = keeper.keep(batch)
        normalize(dict(inputs=batch['inputs'][2:]))
        keeper.compare(batch, kept)
    assert kept.data['inputs'][0] is not batch['inputs'][0]  # as its likes
    assert kept.data['array'] is batch['array']
    label = kept.data['data_samples'][0].label
    assert label is batch['data_samples'][0].label


def test_a_copy_shares_what_the_batch_shares():
    Pair = collections.namedtuple('Pair', 'inputs labels')
    images = torch.zeros(2, 3)
    kept = BatchKeeper().keep(Pair(images, (1, 'a')))
    assert isinstance(kept.fresh(), Pair)
    assert kept.fresh().labels == (1, 'a')


def test_what_cannot_be_copied_is_not_exact():
    class Lock:
        def __init__(self):
            self.lock = threading.Lock()

    keeper = BatchKeeper()
    assert not keeper.keep(dict(inputs=torch.zeros(1), lock=Lock())).is_exact


def test_same_is_bit_for_bit():
    nan = torch.tensor([float('nan')])
    assert same(nan, nan.clone())
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    # As in each batch of mmdet's: no box is to be ignored.
    assert same(*(torch.from_numpy(np.zeros(0, 'int64')) for _ in range(2)))
    assert same(Boxes([1]), Boxes([1]))
    assert not same(Boxes([1]), Boxes([2]))


images = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ('batch', 'num', 'owners'),
    [
        pytest.param(dict(inputs=images), 2, [(0, 1)], id='stacked'),
        pytest.param(list(images), 2, [(0,), (1,)], id='list of images'),
        pytest.param([images, images], 2, [(0, 1)] * 2, id='two views'),
        pytest.param([images, images], 3, [(), ()], id='no samples'),
        pytest.param(
            [[images[0]] * 2, [images[1]] * 2],
            *(2, [(0,), (0,), (1,), (1,)]),
            id='views of samples',
        ),
        pytest.param(
            [dict(inputs=images[0], label=torch.tensor(1))] * 3,
            *(3, [(0,), (0,), (1,), (1,), (2,), (2,)]),
            id='list of dicts',
        ),
        pytest.param(
            dict(data_samples=[BaseDataElement(label=torch.ones(5))]),
            *(1, [(0,)]),
            id='data samples',
        ),
        pytest.param(
            collections.UserDict(inputs=images), 2, [(0, 1)], id='like a dict'
        ),
        pytest.param([images, torch.zeros(2)], 2, [(0, 1)] * 2, id='fields'),
        # A batch of three is not the three channels of an image.
        pytest.param(list(torch.zeros(3, 3, 4, 4)), 3, [(0,), (1,), (2,)]),
    ],
)
def test_whose_tensors(batch, num, owners):
    seen = [samples for _, samples in tensors_of_samples(batch, num)]
    assert seen == owners


class Spoiling(BaseDataPreprocessor):
    """A preprocessor like mmpretrain's and its batch augments.

    It normalizes and mixes in place and sets scores on data samples.
    """

    def forward(self, data, training=False):
        share = np.random.beta(1, 1)
        order = torch.randperm(len(data['inputs']))
        for image in data['inputs']:
            image.sub_(0.5).mul_(1.1)
        images = torch.stack(data['inputs'])
        images = share * images + (1 - share) * images[order]
        for image, mixed in zip(data['inputs'], images):
            image[:, 2:5] = mixed[:, 2:5]
        for sample, other in zip(data['data_samples'], order.tolist()):
            score = getattr(sample, 'gt_score', torch.zeros(()))
            sample.gt_score = score + share + other
        return data


@MODELS.register_module()
class DroppingNet(BaseModel):
    """A model with dropout, a finite loss and NaN gradients."""

    def __init__(self):
        super().__init__(data_preprocessor=Spoiling())
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs))
        features = self.dropout(self.conv(images.clamp(max=9.0)).mean((2, 3)))
        is_sound = images.flatten(1).amax(1) < 100
        features = features + ((features.abs() + 1) * is_sound[:, None]).sqrt()
        scores = torch.stack([s.gt_score for s in data_samples])
        return dict(loss=(features.mean(1) * scores).square().mean())


def autopsy(tmp_path):
    data = make_data(24)
    for index, sample in enumerate(data):
        sample['inputs'] += 1.0 + 1e3 * (index == ILL)
    runner = make_runner(
        tmp_path,
        wrapper(lr=0.01),
        model=dict(type='DroppingNet'),
        train_dataloader=loader(data),
        default_hooks={
            **guard_hooks(),
            'autopsy': dict(type='mmnanguard.AutopsyHook'),
        },
        max_iters=6,
    )
    runner.train()
    (event,) = read_rows(runner)
    assert event['iter'] == 5
    assert isinstance(event['loss'], float)
    (row,) = read_rows(runner, 'autopsy')
    return row


def test_the_replayed_loss_is_that_of_training(tmp_path):
    row = autopsy(tmp_path)
    assert row['exact']
    assert row['repeats']


def test_another_loss_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_keeper, 'NUM_COMPARED', 0)
    row = autopsy(tmp_path)
    assert not row['exact']


def test_what_cannot_be_copied_is_replayed_as_it_is():
    lock = threading.Lock()
    kept = BatchKeeper().keep(dict(inputs=torch.zeros(1), lock=lock))
    fresh = kept.fresh()
    assert fresh['lock'] is lock
    assert fresh['inputs'] is not kept.data['inputs']


ROWS = ['batch 5, row 0', 'batch 5, row 1']
Pair = collections.namedtuple('Pair', 'left right')


@pytest.mark.parametrize(
    ('batch', 'names'),
    [
        (dict(inputs=images), ROWS),
        (dict(inputs=[images, images]), ['batch 5, row 0', 'batch 5, row 1']),
        ([images, torch.zeros(2)], ['batch 5, row 0', 'batch 5, row 1']),
        (
            [[images[0], images[1]], [0, 1]],
            ['batch 5, row 0', 'batch 5, row 1'],
        ),
        (dict(inputs=None), ['batch 5']),
        (
            dict(data_samples=[BaseDataElement(metainfo=dict(img_path='x'))]),
            ['x'],
        ),
    ],
)
def test_names(batch, names):
    assert sample_names(batch, 5) == names


def test_some_of_the_samples():
    pair = Pair(images, (1, 'a'))
    batch = dict(
        inputs=list(images),
        stacked=images,
        views=[images, images],
        labels=np.arange(2),
        pair=pair,
        scale=torch.ones(()),
    )
    some = take_samples(batch, 2, [1])
    assert len(some['inputs']) == len(some['stacked']) == 1
    assert some['inputs'][0] is batch['inputs'][1]
    assert [len(view) for view in some['views']] == [1, 1]
    assert some['labels'].tolist() == [1]
    assert type(some['pair']) is Pair
    assert len(some['pair'].left) == 1
    assert some['scale'] is batch['scale']
    assert len(batch['inputs']) == 2
