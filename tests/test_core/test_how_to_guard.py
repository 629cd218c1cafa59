"""The advice for a wrapper whose updates are not guarded."""

import pytest

from mmnanguard.core.how_to_guard import how_to_guard

GUARDS = 'mmnanguard.NanGuard'


@pytest.mark.parametrize(
    ('kinds', 'advice'),
    [
        (['OptimWrapper'], f'type to {GUARDS}OptimWrapper'),
        (['AmpOptimWrapper', 'OptimWrapper'], f'{GUARDS}AmpOptimWrapper'),
        (['Mine', 'OptimWrapper'], f'subclass of {GUARDS}OptimWrapper'),
        (
            ['Mine', 'AmpOptimWrapper', 'OptimWrapper'],
            f'Make Mine a subclass of {GUARDS}AmpOptimWrapper',
        ),
        (['MyDeepSpeedWrapper'], f'of {GUARDS}DeepSpeedOptimWrapper'),
        (['Mine', 'ApexOptimWrapper', 'OptimWrapper'], 'keys of Apex'),
    ],
)
def test_it_names_the_right_type(kinds, advice):
    assert advice in how_to_guard(kinds)
