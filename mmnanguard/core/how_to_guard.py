"""The advice for an optimizer wrapper whose updates are not guarded."""

from typing import Sequence

__all__ = ['has_guarded_form', 'how_to_guard']

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
NO_FORM = ('ColossalAIOptimWrapper', 'ApexOptimWrapper')


def how_to_guard(kinds: Sequence[str]) -> str:
    """Return what to do so that updates are guarded, as sentences.

    Args:
        kinds: The names of the wrapper's class and of its base classes.
    """
    for kind in kinds:
        if kind in SPECIAL:
            return SPECIAL[kind]
    return DEFAULT


def has_guarded_form(kind: str) -> bool:
    """Whether ``--guard`` may have a guarded type for a wrapper's class."""
    return kind not in NO_FORM
