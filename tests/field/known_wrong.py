"""The scenarios whose verdict is still wrong, each with the reason.

A scenario that is right must not stand here: the test fails, strictly, so
that the score in the README and the table in ``limits.md`` follow.
"""

from typing import Dict

# Guarded runs that end worse than without a guard.
WORSE: Dict[str, str] = {
    'GaussianDistance': (
        'NaN gradients that no loss scale causes lower a static loss scale '
        'until gradients vanish'
    ),
    'OnlyIgnoredLabels': (
        'harmless NaN losses count toward the limits and end the run'
    ),
    'RateOfTwo': 'an explosion within four updates is not recognized as one',
    'IgnoredMicroBatches': (
        'a window of accumulation is rejected for a micro-batch whose '
        'gradients are zero'
    ),
    'SumInHalf': (
        'each update is rejected for a loss of Inf, although all gradients '
        'are finite'
    ),
    'UnlabelledCrops': (
        'harmless NaN losses count toward the limits and end the run'
    ),
    'EpsilonOfZero': "the optimizer's step makes NaN, and hooks are blamed",
    'RateIsNan': 'a learning rate of NaN is committed, and hooks are blamed',
    'SumOfNothing': "the optimizer's step makes NaN, and hooks are blamed",
}
# A wrong cause, culprit or advice.
WRONG: Dict[str, str] = {
    'AnnealedPrior': (
        'with `--guard full`, a loss that rises by design is taken for '
        'divergence'
    ),
    'RateOfTwo': 'an explosion within four updates is not recognized as one',
    'NeverInitialized': (
        'a parameter that is NaN from the start is blamed on hooks'
    ),
    'EpsilonOfZero': "the optimizer's step makes NaN, and hooks are blamed",
    'RateIsNan': 'a learning rate of NaN is committed, and hooks are blamed',
    'SumOfNothing': "the optimizer's step makes NaN, and hooks are blamed",
}
