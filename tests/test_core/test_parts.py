from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest

from mmnanguard._support.parts import MAX_DEPTH, parts_of, with_parts
from mmnanguard._support.sample_name import SampleKey, sample_name

Pair = namedtuple('Pair', 'left right')


@dataclass(frozen=True)
class Frozen:
    value: object


class Slotted:
    __slots__ = ('unset', 'value')

    def __init__(self, value):
        self.value = value


class Lazy:
    def __init__(self, value):
        self.value = value

    @property
    def computed(self):
        raise AssertionError('a property must not run')


@pytest.mark.parametrize(
    'make',
    [
        Frozen,
        Slotted,
        Lazy,
        lambda value: {'value': value},
        lambda value: OrderedDict(value=value),
    ],
)
def test_takes_apart_and_copies(make):
    value = make(1)
    assert dict(parts_of(value)) == {'value': 1}
    changed = with_parts(value, {'value': 2})
    assert dict(parts_of(changed)) == {'value': 2}
    assert type(changed) is type(value)
    assert dict(parts_of(value)) == {'value': 1}


def test_named_tuple_and_list():
    assert with_parts(Pair(1, 2), {'right': 3}) == Pair(1, 3)
    assert with_parts([1, 2], {0: 3}) == [3, 2]
    assert parts_of((1, 2)) == [(0, 1), (1, 2)]


def test_a_value_within_itself_ends():
    value = Lazy(None)
    value.value = [value]
    assert parts_of(value, trail=(id(value),)) == []


def test_a_deep_value_ends():
    assert parts_of([1], trail=tuple(range(MAX_DEPTH))) == []


@pytest.mark.parametrize('value', [1, 1.0, 'text', None, int, print, Lazy])
def test_a_leaf_has_no_parts(value):
    assert parts_of(value) == []


@pytest.mark.parametrize(
    ('info', 'name'),
    [
        (dict(lidar_path='a.bin'), 'a.bin'),
        (dict(sample_idx=3, lidar_path='a.bin'), 'sample_idx 3'),
        (dict(filename='a.mp4', video_id=7), 'a.mp4'),
        (dict(video_id=7), 'video_id 7'),
        (dict(img_path=['front.jpg', 'back.jpg']), 'front.jpg'),
        (dict(img_path=[], img_id=2), 'img_id 2'),
        (dict(shape=2), None),
    ],
)
def test_names(info, name):
    assert sample_name(info) == name


def test_a_key_of_the_user_comes_first(monkeypatch):
    monkeypatch.setattr(SampleKey, 'chosen', 'token')
    assert sample_name(dict(img_path='a.jpg', token='x')) == 'token x'
    assert sample_name(dict(img_path='a.jpg')) == 'a.jpg'
