"""The scenarios whose verdict is still wrong, each with the reason.

A scenario that is right must not stand here: the test fails, strictly, so
that the score in the README and the table in ``limits.md`` follow.
"""

from typing import Dict

# Guarded runs that end worse than without a guard.
WORSE: Dict[str, str] = {
    'RateOfTwo': 'an explosion within four updates is not recognized as one',
    'SumInHalf': (
        'each update is rejected for a loss of Inf, although all gradients '
        'are finite'
    ),
}
# A wrong cause, culprit or advice.
WRONG: Dict[str, str] = {
    'AnnealedPrior': (
        'with `--guard full`, a loss that rises by design is taken for '
        'divergence; the rollback is undone'
    ),
    'RateOfTwo': 'an explosion within four updates is not recognized as one',
}
