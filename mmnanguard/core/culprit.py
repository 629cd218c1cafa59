"""The question whether samples, or an operation, are to blame."""

from collections import Counter
from itertools import chain
from typing import AbstractSet, Collection, List, Sequence, Set, Tuple

from .rows.autopsy import Autopsy

__all__ = [
    'explain_batches',
    'names_a_minority',
    'samples_at_fault',
    'suspects_among',
]

# The least share of the rejected batches that hold a blamed sample.
LEAST_COVERED = 0.8
# Up to this share of rejected updates, the operation alone explains little:
# it works in all other batches.
RARE_SHARE = 0.1
LEAST_BATCHES = 3
MOST_NAMED = 8
MOST_ONCE = 0.5  # share of the blamed samples that were rejected once
MOST_REJECTED = 0.5  # share of updates above which no sample is a suspect
MOST_RARE = 3  # blamed samples that were rejected once each
NUM_PER_SAMPLE = 2  # rejected batches that one blamed sample should explain


def samples_at_fault(
    autopsies: Sequence[Autopsy],
    batches: Sequence[Collection[str]],
    share: float,
) -> Tuple[str, ...]:
    """Return the samples that explain the rejections better than the module.

    A sample whose input is not finite is at fault. Any other sample is only
    if most of its batch was fine, and if the samples explain the rejected
    batches, see :func:`explain_batches`. If the module is finite in float32,
    they also have to be rejected again and again.

    Args:
        autopsies: The autopsies of the trouble.
        batches: The names of the samples of each rejected update.
        share: The share of updates that were rejected in the trouble.
    """
    certain: List[str] = []
    suspects: List[str] = []
    must_repeat = False
    most_rare = MOST_RARE
    for autopsy in autopsies:
        if autopsy.phase == 'input':
            certain.extend(autopsy.samples)
        elif names_a_minority(autopsy):
            suspects.extend(autopsy.samples)
            must_repeat |= autopsy.tried.get('module_fp32', False)
            # A pole now and then, of other samples each time, is in the code.
            if autopsy.is_certain:
                most_rare = 1
    # A batch with a bad input says nothing about other samples, unless there
    # is no other batch.
    known = set(certain)
    open_batches = [batch for batch in batches if known.isdisjoint(batch)]
    if suspects and not explain_batches(
        set(suspects), open_batches or batches, share, must_repeat, most_rare
    ):
        suspects = []
    # In the order in which they were named, each once.
    return tuple(dict.fromkeys([*certain, *suspects]))


def names_a_minority(autopsy: Autopsy) -> bool:
    """Whether only a few samples went bad, and the rest is known to be fine.

    An operation that goes bad for most samples of a batch is at fault itself.
    So is one that is fine with these samples in float32, where no epsilon is
    rounded to 0.
    """
    if autopsy.is_rounding:
        return False
    num = len(autopsy.samples)
    if autopsy.num_samples > 1 and 2 * num > autopsy.num_samples:
        return False
    return autopsy.tried.get('without_samples', True)


def explain_batches(
    names: AbstractSet[str],
    batches: Sequence[Collection[str]],
    share: float,
    must_repeat: bool = False,
    most_rare: int = MOST_RARE,
) -> bool:
    """Whether some samples explain why these batches were rejected.

    Most of the batches have to hold one of them. Unless rejections are rare,
    the samples also have to be few: an operation that goes bad by itself has
    other samples in each batch.

    Args:
        names: The samples.
        batches: The names of the samples of each rejected update.
        share: The share of updates that were rejected in the trouble.
        must_repeat: Whether the samples have to be few in any case, because
            another cure is known.
        most_rare: The largest number of samples that may have been rejected
            once each.
    """
    rejected = [set(batch) & names for batch in batches if batch]
    covered = [batch for batch in rejected if batch]
    if batches and not rejected:
        return False
    if len(covered) < LEAST_COVERED * len(rejected):
        return False
    is_rare = share <= RARE_SHARE or len(covered) <= NUM_PER_SAMPLE
    blamed = covering(covered)
    num = len(blamed)
    if is_rare and num <= most_rare and not must_repeat:
        return True
    once = [name for name in blamed if sum(name in b for b in covered) == 1]
    if len(once) > max(most_rare, MOST_ONCE * num):
        return False
    return NUM_PER_SAMPLE * num <= len(covered)


def suspects_among(
    batches: Sequence[Collection[str]], share: float = 0.0
) -> Tuple[str, ...]:
    """Return a few samples of which each rejected batch holds one.

    Nothing but their presence speaks against them, so samples that are always
    in the same batches are suspects together. Empty unless there are at least
    three batches and two for each such sample, and most updates are good:
    where most are rejected, each sample is in rejected batches.

    Args:
        batches: The names of the samples of each rejected update.
        share: The share of updates that were rejected in the trouble.
    """
    named = [set(batch) for batch in batches if batch]
    if len(named) < LEAST_BATCHES or share > MOST_REJECTED:
        return ()
    names = covering(named)
    if NUM_PER_SAMPLE * len(names) > len(named):
        return ()
    suspects: List[str] = []
    for name in names:
        suspects += always_with(name, named)
    # A long list would only hide that nothing is known.
    if len(suspects) > MOST_NAMED:
        return ()
    return tuple(dict.fromkeys(suspects))


def always_with(name: str, batches: Sequence[AbstractSet[str]]) -> List[str]:
    """Return the samples that are in the same batches as a sample, sorted.

    The sample itself is among them.
    """
    common: Set[str] = set().union(*batches)
    for batch in batches:
        if name in batch:
            common &= batch
        else:
            common -= batch
    return sorted(common)


def covering(batches: Sequence[AbstractSet[str]]) -> Tuple[str, ...]:
    """Return samples that suffice to have one in each batch."""
    rest, names = list(batches), []
    while rest:
        # The sample in most of the batches; sorted, so that equal batches
        # have equal results.
        counts = Counter(sorted(chain.from_iterable(rest)))
        (name, _), *_ = counts.most_common(1)
        rest = [batch for batch in rest if name not in batch]
        names.append(name)
    return tuple(names)
