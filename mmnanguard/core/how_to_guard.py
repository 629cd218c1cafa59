"""The advice for an optimizer wrapper whose updates are not guarded."""

import re
from typing import Sequence

__all__ = ['base_for', 'has_guarded_form', 'how_to_guard']

# Names of classes for half precision.
HALF = re.compile('A(mp(?![a-z])|MP)|[Ff][Pp]16|Half')

DEFAULT = (
    'Set optim_wrapper.type to mmnanguard.NanGuardOptimWrapper or '
    'mmnanguard.NanGuardAmpOptimWrapper, and leave out --amp, which puts '
    "MMEngine's wrapper in its place."
)
# By the name of MMEngine's wrapper.
SPECIAL = {
    'DeepSpeedOptimWrapper': (
        'Set optim_wrapper.type to mmnanguard.NanGuardDeepSpeedOptimWrapper.'
    ),
    'ColossalAIOptimWrapper': (
        'ColossalAI updates parameters by itself and cannot be guarded; '
        'FSDPStrategy and DeepSpeedStrategy of MMEngine can.'
    ),
    'ApexOptimWrapper': (
        'Apex cannot be guarded. Set optim_wrapper.type to '
        'mmnanguard.NanGuardAmpOptimWrapper, which does with PyTorch what '
        "Apex does with opt_level='O1', and leave out the keys of Apex."
    ),
}
# MMEngine's other wrappers.
PLAIN = ('OptimWrapper', 'AmpOptimWrapper')
NO_FORM = ('ColossalAIOptimWrapper', 'ApexOptimWrapper')


def how_to_guard(kinds: Sequence[str]) -> str:
    """Return what to do so that updates are guarded, as sentences.

    Args:
        kinds: The names of the wrapper's class and of its base classes.
    """
    for kind in kinds:
        if kind in SPECIAL:
            return SPECIAL[kind]
    if kinds[0] not in PLAIN:
        return (
            f'Make {kinds[0]} a subclass of {base_for(kinds)}, or set '
            'optim_wrapper.type to that.'
        )
    return DEFAULT


def base_for(kinds: Sequence[str], trains_in_half: bool = False) -> str:
    """Return the guarded type of which a class should be a subclass.

    Args:
        kinds: The bare name of an optimizer wrapper or an optimizer hook, and
            those of its base classes if they are known.
        trains_in_half: Whether the config trains in half precision.
    """
    if any('DeepSpeed' in kind for kind in kinds):
        return 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
    if trains_in_half or any(map(HALF.search, kinds)):
        return 'mmnanguard.NanGuardAmpOptimWrapper'
    return 'mmnanguard.NanGuardOptimWrapper'


def has_guarded_form(kind: str) -> bool:
    """Whether ``--guard`` may have a guarded type for a wrapper's class."""
    return kind not in NO_FORM
