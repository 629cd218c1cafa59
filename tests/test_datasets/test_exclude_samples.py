import numpy as np
import pytest
from mmengine.registry import DATASETS
from planted_digits import PlantedDigits
from torch.utils.data import Dataset

from mmnanguard.core import GuardConfigError
from mmnanguard.datasets import ExcludeSamples

INNER = dict(
    type=PlantedDigits.__name__,
    split='train',
    indices=10,
    pipeline=[dict(type='PackDigits')],
)


def exclude(samples, inner=INNER, **keys):
    return DATASETS.build(
        dict(
            type='mmnanguard.ExcludeSamples',
            dataset=inner,
            samples=samples,
            **keys,
        )
    )


def name(index):
    return f'digits/train/{index:06d}'


def names(dataset):
    return [
        dataset[index]['data_samples'].img_path
        for index in range(len(dataset))
    ]


@pytest.mark.parametrize(
    'samples',
    [
        [0, 8],
        [name(8), 0, 0],
        f'# a comment\n\n0\n{name(8)}\n',
        f'0\t{name(0)}\n8\t{name(8)}\n',
        f'5\t{name(0)}\n77\t{name(8)}\n',  # the numbers have changed since
    ],
)
def test_by_index_and_by_name(samples, tmp_path):
    if isinstance(samples, str):
        path = tmp_path / 'list.txt'
        path.write_text(samples)
        samples = str(path)
    dataset = exclude(samples)
    right = [name(index) for index in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert names(dataset) == right
    paths = [dataset.get_data_info(i)['img_path'] for i in range(8)]
    assert paths == right
    assert dataset[-1]['data_samples'].img_path == name(9)
    assert dataset.metainfo['classes'] == tuple('0123456789')
    with pytest.raises(IndexError):
        dataset[8]


def test_nothing_to_leave_out():
    assert len(exclude([])) == 10


@pytest.mark.parametrize('samples', [[name(3), name(77)], [3, 10]])
def test_a_stale_list(samples, capsys):
    message = r'1 of 2 listed samples are not in the dataset: .*(77|index 10)'
    with pytest.raises(GuardConfigError, match=message):
        exclude(samples)
    assert len(exclude(samples, allow_missing=True)) == 9
    assert '1 of 2 listed samples are not' in capsys.readouterr().out


def test_mistakes(tmp_path):
    with pytest.raises(GuardConfigError, match='all 10'):
        exclude(list(range(10)))
    with pytest.raises(GuardConfigError, match=r'no such file|No such file'):
        exclude(str(tmp_path / 'lost.txt'))
    for wrong in (1.5, -1, None):
        with pytest.raises(GuardConfigError, match='an index from 0'):
            exclude([wrong])


def test_no_excluded_sample_stands_in_for_a_dropped_one():
    inner = dict(
        INNER, pipeline=[dict(type='Mishap', drops=[1]), *INNER['pipeline']]
    )
    dataset = exclude([0, 2, 3, 4, 5, 6, 7, 9], inner)
    np.random.seed(0)
    for _ in range(20):
        assert set(names(dataset)) == {name(8)}


def test_other_wrappers_take_it():
    inner = dict(type='mmnanguard.ExcludeSamples', dataset=INNER, samples=[0])
    repeated = DATASETS.build(
        dict(type='RepeatDataset', dataset=inner, times=2)
    )
    assert names(repeated) == [name(index) for index in range(1, 10)] * 2
    joined = DATASETS.build(
        dict(type='ConcatDataset', datasets=[inner, INNER], lazy_init=True)
    )
    joined.full_init()
    assert len(joined) == 19
    assert joined[9]['data_samples'].img_path == name(0)


def test_it_waits_to_be_initialized():
    lazy = dict(INNER, lazy_init=True)
    dataset = exclude([0], lazy, lazy_init=True)
    assert not dataset.dataset._fully_initialized
    assert dataset.metainfo['classes'] == tuple('0123456789')
    dataset.full_init()
    assert dataset.dataset._fully_initialized
    assert len(dataset) == 9


class Plain(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


def test_a_plain_dataset_goes_by_indices(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('1\ta name that its pipeline gave\n3\n')
    dataset = ExcludeSamples(Plain(), str(path))
    assert [dataset[index] for index in range(len(dataset))] == [0, 2]
    assert dataset.metainfo == {}
    with pytest.raises(GuardConfigError, match='not in the dataset: a name'):
        ExcludeSamples(Plain(), ['a name'])
