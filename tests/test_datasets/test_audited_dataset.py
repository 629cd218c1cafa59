import os
import re

import numpy as np
import pytest

from mmnanguard.core import GuardConfigError
from mmnanguard.datasets.audited_dataset import AuditedDataset
from mmnanguard.datasets.dataset_audit import audit
from mmnanguard.datasets.find_problems import build_checks

BOXES = dict(type='NotDegenerate', key='box')


def audited(samples, *checks, keys=()):
    return AuditedDataset(samples, build_checks(checks, 'here'), keys)


@pytest.mark.parametrize(
    ('odd', 'message'),
    [
        (dict(other=1), "the sample has no 'box'"),
        (dict(box=None), "the sample has no 'box'"),
        (dict(box='none'), 'holds no numbers, it is a str'),
        (dict(box=np.ones(3)), 'has shape (3,)'),
    ],
)
def test_what_some_samples_lack_is_a_finding(odd, message):
    """A missing key is a mistake if no sample has it, else a bad sample."""
    good = dict(box=np.array([0, 0, 1, 1]))
    dataset = audited([odd, good], BOXES, keys=['box'])
    dataset.check_keys()
    assert dataset[1]['problems'] == []
    (problem,) = dataset[0]['problems']
    assert problem['check'] == 'NotDegenerate'
    assert message in problem['text']
    with pytest.raises(GuardConfigError, match=re.escape(message)):
        audited([odd, odd], BOXES).check_keys()


def test_an_expression_that_fails_for_a_sample():
    check = dict(type='Range', key='box[0]', min=0)
    dataset = audited([dict(box=[]), dict(box=[1])], check, keys=['box[0]'])
    dataset.check_keys()
    first, second = dataset[0], dataset[1]
    assert 'fails: IndexError' in first['problems'][0]['text']
    assert first['values'] == {'box[0]': None}
    assert second['values']['box[0]']['count'] == 1
    assert [first['name'], second['problems']] == [None, []]


def test_a_key_of_some_samples():
    dataset = audited([dict(x=1), dict(x=1, y=2)], 'Finite', keys=['x', 'y'])
    dataset.check_keys()
    assert dataset[0]['values']['y'] is None
    assert dataset[1]['values']['y']['count'] == 1


def test_an_expression_that_fails_for_all():
    dataset = audited([dict(x=1)], 'Finite', keys=['x.mean(axis=7)'])
    with pytest.raises(GuardConfigError, match=r"'x.mean\(axis=7\)' fails: "):
        dataset.check_keys()


def lost_key(results):
    assert results['lost'] > 0


def test_a_users_check_that_fails():
    message = 'the check lost_key fails: KeyError'
    dataset = audited([dict(x=1), dict(lost=1)], dict(type=lost_key))
    dataset.check_keys()
    assert message in dataset[0]['problems'][0]['text']
    with pytest.raises(GuardConfigError, match=message):
        audited([dict(x=1)], dict(type=lost_key)).check_keys()


class OpensOnce(list):
    """A dataset that is useless after a fork, like a file that is opened when
    the first sample is read.
    """

    pid = None

    def __getitem__(self, index):
        self.pid = self.pid or os.getpid()
        return dict(x=1 if self.pid == os.getpid() else np.nan)


def test_no_sample_is_loaded_before_the_fork(tmp_path):
    rows = []
    dataset = audited(OpensOnce([0] * 3), 'Finite', keys=['x'])
    assert audit(dataset, {}, tmp_path, num_workers=1, on_rows=rows.extend)
    assert [row['problems'] for row in rows] == [[], [], []]


def test_a_mistake_leaves_nothing_to_resume(tmp_path):
    """The corrected audit must not be refused its folder."""
    wrong, right = (audited([dict(x=1)], 'Finite', keys=[k]) for k in 'yx')
    with pytest.raises(GuardConfigError, match="has no 'y'"):
        audit(wrong, dict(keys=['y']), tmp_path)
    assert audit(right, dict(keys=['x']), tmp_path)


def test_a_mistake_is_handed_over_not_raised():
    """A worker process would wrap the error if it were raised."""

    class Mistaken(list):
        def __getitem__(self, index):
            raise GuardConfigError('of the config')

    assert str(audited(Mistaken([1]), 'Finite')[0]) == 'of the config'


def test_a_sample_that_is_no_dict():
    row = audited([(np.array([np.nan]), 3)], 'Finite')[0]
    text = 'sample.0[0] is nan: it must be finite'
    assert row['problems'] == [dict(check='Finite', text=text)]
