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
    'MaskedTargets': (
        'with `--guard full`, batches with NaN in masked targets are rejected'
    ),
    'UnlabelledCrops': (
        'harmless NaN losses count toward the limits and end the run'
    ),
    'EpsilonOfZero': "the optimizer's step makes NaN, and hooks are blamed",
    'RateIsNan': 'a learning rate of NaN is committed, and hooks are blamed',
    'ForwardWritesParameter': (
        'a parameter that forward writes ends the run, although it is put back'
    ),
    'SumOfNothing': "the optimizer's step makes NaN, and hooks are blamed",
}
# A wrong cause, culprit or advice.
WRONG: Dict[str, str] = {
    'RateOfEightGpus': (
        'the halt names neither clipping nor, in full, the learning rate '
        'alone: it also suspects samples and divisions'
    ),
    'NoWarmUp': (
        'the advice says that no clipping can help, and does not name the '
        'warm-up'
    ),
    'HeatmapLogOfZero': (
        'the autopsy calls the pole of a logarithm an overflow'
    ),
    'EntropyByHand': 'the autopsy calls the pole of a logarithm an overflow',
    'MaskedTargets': (
        'with `--guard full`, batches with NaN in masked targets are rejected'
    ),
    'AnnealedPrior': (
        'with `--guard full`, a loss that rises by design is taken for '
        'divergence, until the rollback has not helped and is undone'
    ),
    'RateOfTwo': 'the advice says that no clipping can help',
    'NearestNeighbour': (
        'the autopsy calls the pole of a logarithm an overflow'
    ),
    'LearnedTemperature': (
        'the advice names neither the learning rate nor the exponential'
    ),
    'RateOfDecoder': 'the advice does not name the learning rate',
    'EpsilonOfZero': "the optimizer's step makes NaN, and hooks are blamed",
    'RateIsNan': 'a learning rate of NaN is committed, and hooks are blamed',
    'AnchorsGoBad': 'a constant buffer that a hook made NaN is not named',
    'ForwardWritesParameter': (
        'a parameter that forward writes ends the run, although it is put back'
    ),
    'SumOfNothing': "the optimizer's step makes NaN, and hooks are blamed",
    'LossRebuilt': 'a run without any gradient is not mentioned',
}
