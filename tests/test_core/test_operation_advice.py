"""The advice on a derivative at its pole names what fits the operation."""

import pytest

from mmnanguard.core.operation_advice import advise_on
from mmnanguard.core.rows.autopsy import Autopsy


@pytest.mark.parametrize(
    ('derivative', 'cure'),
    [
        ('sqrt', 'safe_sqrt'),
        ('xlogy', 'safe_log'),  # KL divergence
        ('cdist', 'safe_norm'),
        ('acosh', '1 + 1e-6 or more'),  # distance in hyperbolic space
        ('atan2', 'Keep its input away from there'),
    ],
)
def test_a_derivative_gets_a_cure_of_its_own(derivative, cure):
    finding = Autopsy(
        id='1',
        phase='backward',
        op='aten.div',
        source='loss.py:3',
        dtype='float32',
        derivative=derivative,
        is_pole=True,
        operands=(0.0, 0.0),
    )
    advice = advise_on(finding).long
    assert cure in advice
    assert ('safe_' in advice) == cure.startswith('safe_')
