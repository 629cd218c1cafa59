"""Samples are blamed only if they explain more than the module does."""

import pytest

from mmnanguard.core import Autopsy
from mmnanguard.core.culprit import samples_at_fault, suspects_among


def autopsy(*names, phase='forward', num_samples=8, **keys):
    return Autopsy(
        phase=phase,
        samples=names,
        num_samples=num_samples,
        repeats=True,
        **keys,
    )


def batches(*names):
    """Return batches of eight samples, each with one of the names."""
    return [
        (name, *(f'{number}-{index}' for index in range(7)))
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ('autopsies', 'rejected', 'share', 'expected'),
    [
        # One bad sample, epoch after epoch.
        ([autopsy('a')], batches('a', 'a', 'a'), 0.01, ('a',)),
        # The only rejection of a long run.
        ([autopsy('a')], batches('a'), 1.0, ('a',)),
        # Several rare samples, each rejected once.
        (
            [autopsy('a'), autopsy('b'), autopsy('c')],
            batches('a', 'b', 'c'),
            0.01,
            ('a', 'b', 'c'),
        ),
        # A pole that other samples meet now and then.
        (
            [autopsy('a', is_pole=True), autopsy('b', is_pole=True)],
            batches('a', 'b'),
            0.01,
            (),
        ),
        # Four samples in turn are too many.
        (list(map(autopsy, 'abcd')), batches('a', 'b', 'c', 'd'), 0.01, ()),
        # Each batch is bad, with other samples every time.
        (
            [autopsy('a'), autopsy('b'), autopsy('c')],
            batches('a', 'b', 'c'),
            1.0,
            (),
        ),
        # Batches without a blamed sample are rejected as well.
        ([autopsy('a')], batches('a', 'x', 'y', 'z'), 0.01, ()),
        # Most of the batch is bad.
        ([autopsy('a', 'b', 'c', 'd', 'e')], batches('a'), 1.0, ()),
        # The rest of the batch is bad without it.
        (
            [autopsy('a', tried={'without_samples': False})],
            batches('a'),
            1.0,
            (),
        ),
        # The module is finite in float32 and has had no other chance to fail.
        ([autopsy('a', tried={'module_fp32': True})], batches('a'), 1.0, ()),
        # It fails for this sample alone, again and again.
        (
            [autopsy('a', tried={'module_fp32': True})],
            batches('a', 'a'),
            0.01,
            ('a',),
        ),
        # The batches have no names.
        ([autopsy('a', 'b')], [()] * 14, 0.05, ()),
        # Most of the samples failed once, and other batches hold them too.
        (
            [autopsy('a', 'b', 'c', 'd', is_pole=True)],
            batches(*'aaaaaabcd'),
            0.05,
            (),
        ),
        (
            [autopsy('a', 'b', 'c', 'd', is_pole=True)],
            batches(*'aaaabbccd'),
            0.2,
            ('a', 'b', 'c', 'd'),
        ),
        # An epsilon that float16 rounds to 0 is a fault of the operation.
        (
            [
                autopsy(
                    'a', is_pole=True, dtype='float16', tried={'fp32': True}
                )
            ],
            batches('a', 'a', 'a'),
            0.01,
            (),
        ),
        # Its input is not finite: nothing else matters.
        (
            [autopsy('a', phase='input')],
            batches('a', 'x', 'y', 'z'),
            1.0,
            ('a',),
        ),
        # Beside it, another sample has no label, and fails by itself.
        (
            [autopsy('a', phase='input'), autopsy('b', is_pole=True)],
            batches('a', 'b', 'a', 'a', 'b', 'a'),
            0.05,
            ('a', 'b'),
        ),
        # It explains none of the batches without the bad input.
        (
            [autopsy('a', phase='input'), autopsy('b', is_pole=True)],
            batches('a', 'x', 'y', 'z', 'b', 'a'),
            0.05,
            ('a',),
        ),
        ([], batches('a', 'a'), 1.0, ()),
        ([autopsy()], batches('a', 'a'), 1.0, ()),
    ],
)
def test_samples_at_fault(autopsies, rejected, share, expected):
    assert samples_at_fault(autopsies, rejected, share) == expected


@pytest.mark.parametrize(
    ('rejected', 'expected'),
    [
        (batches('a', 'a', 'a'), ('a',)),
        (batches('a', 'b', 'a', 'b', 'a', 'b'), ('a', 'b')),
        (3 * [tuple('abcdefghijkl')], ()),
        (batches('a', 'a'), ()),  # by chance, perhaps
        (batches('a', 'b', 'c', 'd'), ()),
        ([(), (), ()], ()),
        # Always together: nothing tells which of them it is.
        ([('a', 'b', 'x'), ('b', 'y', 'a'), ('a', 'b')], ('a', 'b')),
        # 's' is in each batch of 'c', and beside 'a' as well.
        ([('a', 's'), *3 * [('a',)], *3 * [('c', 's')]], ('a', 'c')),
    ],
)
def test_suspects_are_in_each_rejected_batch(rejected, expected):
    assert suspects_among(rejected) == expected
