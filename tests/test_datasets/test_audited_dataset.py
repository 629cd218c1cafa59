import numpy as np
import pytest

from mmnanguard.core import GuardConfigError
from mmnanguard.datasets.audited_dataset import AuditedDataset
from mmnanguard.datasets.find_problems import build_checks

BOXES = dict(type='NotDegenerate', key='box')


def audited(samples, *checks, keys=()):
    return AuditedDataset(samples, build_checks(checks, 'here'), keys)


@pytest.mark.parametrize(
    ('later', 'told'),
    [
        (dict(other=1), "the sample has no 'box'"),
        (dict(box=None), "the sample has no 'box'"),
        (dict(box='none'), 'holds no numbers, it is a str'),
        (dict(box=np.ones(3)), 'has shape (3,)'),
    ],
)
def test_what_does_not_fit_later_is_a_finding(later, told):
    """At first it is a mistake, later it is a bad sample among good ones."""
    good = dict(box=np.array([0, 0, 1, 1]))
    dataset = audited([good, later], BOXES, keys=['box'])
    dataset.check_keys()
    assert dataset[0]['problems'] == []
    (problem,) = dataset[1]['problems']
    assert problem['check'] == 'NotDegenerate'
    assert told in problem['text']
    with pytest.raises(GuardConfigError):
        audited([later, good], BOXES).check_keys()


def test_an_expression_that_fails_for_a_sample():
    check = dict(type='Range', key='box[0]', min=0)
    dataset = audited([dict(box=[]), dict(box=[1])], check, keys=['box[0]'])
    dataset.check_keys()
    first, second = dataset[0], dataset[1]
    assert 'fails: IndexError' in first['problems'][0]['text']
    assert first['values'] == {'box[0]': None}
    assert second['values']['box[0]']['count'] == 1
    assert [first['name'], second['problems']] == [None, []]


def test_a_mistake_is_handed_over_not_raised():
    """As a worker process would wrap it."""

    class Mistaken(list):
        def __getitem__(self, index):
            raise GuardConfigError('of the config')

    assert str(audited(Mistaken([1]), 'Finite')[0]) == 'of the config'


def test_a_sample_that_is_no_dict():
    row = audited([(np.array([np.nan]), 3)], 'Finite')[0]
    text = 'sample.0[0] is nan: it must be finite'
    assert row['problems'] == [dict(check='Finite', text=text)]
