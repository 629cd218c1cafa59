from types import SimpleNamespace as Part

import pytest

from mmnanguard._support.dataset_parts import dataset_parts

SEARCHED = Part(name='searched')


@pytest.mark.parametrize(
    'whole',
    [
        SEARCHED,
        Part(pipeline=Part(transforms=[Part(), SEARCHED])),
        Part(dataset=Part(dataset=Part(pipeline=[SEARCHED]))),
        Part(datasets=[Part(), Part(pipeline=Part(transforms=(SEARCHED,)))]),
        Part(pipeline=[Part(branch_pipelines=dict(weak=[SEARCHED]))]),
        Part(pipeline=[Part(transforms=[[Part()], [SEARCHED, SEARCHED]])]),
    ],
)
def test_each_part_once(whole):
    parts = list(dataset_parts(whole))
    assert sum(part is SEARCHED for part in parts) == 1
    assert any(part is whole for part in parts)


def test_parts_that_hold_one_another():
    first, second = Part(), Part()
    first.dataset, second.pipeline = second, [first, 'no part', 3, None]
    parts = dataset_parts(first)
    assert [id(part) for part in parts] == [id(first), id(second)]
