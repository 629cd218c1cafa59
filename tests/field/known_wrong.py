"""The scenarios whose verdict is still wrong, each with the reason.

A scenario that is right must not stand here: the test fails, strictly, so
that the score in the README and the table in ``limits.md`` follow.
"""

from typing import Dict

# Guarded runs that end worse than without a guard.
WORSE: Dict[str, str] = {}
# A wrong cause, culprit or advice.
WRONG: Dict[str, str] = {
    'AnnealedPrior': (
        'with `--guard full`, a loss that rises by design is taken for '
        'divergence; the rollback is undone'
    ),
    'FeedForwardInHalf': (
        'with `--guard full`, leaving out a sample is recommended for a '
        'module that overflows'
    ),
    'SmoothedMaskedLogits': (
        'with `--guard full`, a fill value of -Inf is called an overflow'
    ),
    'NeverInitialized': (
        'a parameter that is NaN from the start is blamed on hooks'
    ),
}
