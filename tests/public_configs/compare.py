"""The comparison of two runs, and whether the migration's notes tell of a
difference.
"""

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping

from public_configs.facts import TOLERANCE, Facts, Unknown, agree, rate_gap

# What a note has to name for a fact to be told of; by default the fact's key.
WORDS = {
    'length': 'runner|total_epochs|total_iters|train_cfg',
    'rates': 'lr_config|warm-?up|min_lr|param_scheduler|several optimizers',
    'momenta': 'momentum',
    'optimizer': 'optimizer',
    'paramwise': 'optimizer|paramwise',
    'constructor': 'optimizer|constructor',
    'guard': 'optimizer',
    'optimizer hook': 'optimizer_config|class of your own',
    'clip': 'optimizer_config|grad_clip|clip_grad',
    'accumulation': 'optimizer_config|cumulative|accumul',
    'loss scale': 'fp16|loss.?scale|optimizer_config',
    'validation': 'evaluation|val_interval',
    'validation begins': 'evaluation|val_begin|interval from there',
    'dynamic intervals': 'evaluation|dynamic_intervals',
    'checkpoint': 'checkpoint_config|default_hooks.checkpoint',
    'log interval': 'log_config|log_processor',
    'log by_epoch': 'log_config|log_processor',
    'log services': 'log_config|backend',
    'load_from': 'load_from|resume_from',
    'workflow': "workflow|'val' computed losses",
    'model': 'model|train_cfg|test_cfg',
}
# Facts that MMEngine gives only with a loop.
DERIVED = ('rates', 'validation')
# The gap that a note on a change in meaning may tell of: an iteration of a
# warm-up, or a fraction of min_lr.
SLIGHT = 0.06
INVALID_LOSS = 'CheckInvalidLossHook'
# Notes that many migrations print, whatever they did, tell of nothing.
STANDING = re.compile('pipelines are carried over|which metric|default_scope')


@dataclass(frozen=True)
class Difference:
    """A fact that a migration changed.

    Attributes:
        fact: The name of the fact.
        old: Its value in 1.x.
        new: Its value in 2.x.
        is_told: Whether a note tells of it.
    """

    fact: str
    old: Any
    new: Any
    is_told: bool


@dataclass(frozen=True)
class Notes:
    """The notes of a migration.

    Attributes:
        done: What was migrated.
        changed: What has another meaning now.
        left: What the user has to do.
    """

    done: List[str]
    changed: List[str]
    left: List[str]


def compare(old: Facts, new: Facts, notes: Notes) -> List[Difference]:
    """Return the facts of 1.x that 2.x does not have."""
    differences = []
    for fact, value in old.items():
        if fact == 'custom_hooks':
            differences += lost_hooks(value, new, notes)
            continue
        other = new.get(fact)
        if fact == 'rates' and isinstance(value, list):
            gap = rate_gap(value, other)
            if gap <= TOLERANCE:
                continue
            texts = notes.left + (notes.changed if gap < SLIGHT else [])
        elif agree(value, other):
            continue
        else:
            texts = notes.left + notes.changed
        is_told = names(texts, words_of(fact))
        if fact in DERIVED and isinstance(other, (Unknown, type(None))):
            # MMEngine cannot build the loop, so the note is that of the loop.
            is_told = is_told or names(texts, WORDS['length'])
        differences.append(Difference(fact, value, other, is_told))
    return differences


def words_of(fact: str) -> str:
    """Return the expression of what a note has to name."""
    if fact in WORDS:
        return WORDS[fact]
    phase, _, rest = fact.partition(' ')
    if phase in ('train', 'val', 'test'):
        return rf'{phase}_dataloader|data\.{phase}|{phase}_{rest}|\bdata is'
    name = re.split(r'[ .]', fact)[-1]
    return rf'\b{re.escape(name)}\b'


def names(texts: List[str], words: str) -> bool:
    """Whether a note names a fact."""
    return any(
        re.search(words, text) and not STANDING.search(text) for text in texts
    )


def lost_hooks(
    hooks: List[Mapping[str, Any]], new: Facts, notes: Notes
) -> List[Difference]:
    """Return the hooks that are neither kept nor named.

    A CheckInvalidLossHook ends a guarded run, so that it is a difference if it
    is kept.
    """
    differences = []
    for hook in hooks:
        kind = str(hook.get('type'))
        is_kept = hook in new['custom_hooks']
        ends_run = kind.endswith(INVALID_LOSS)
        if is_kept and not ends_run:
            continue
        texts = notes.changed + notes.left
        if not is_kept:
            texts = texts + notes.done
        is_told = names(texts, re.escape(kind))
        # A removal that is named is what a user wants.
        if not (is_told and ends_run and not is_kept):
            difference = Difference(f'hook {kind}', hook, None, is_told)
            differences.append(difference)
    return differences


def stray_keys(value: Any, where: str = '') -> Dict[str, Any]:
    """Return the ``_delete_`` that MMEngine left in a config, by path."""
    stray: Dict[str, Any] = {}
    if isinstance(value, dict):
        if '_delete_' in value:
            stray[where] = value['_delete_']
        for key, entry in value.items():
            stray.update(stray_keys(entry, f'{where}.{key}'))
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            stray.update(stray_keys(entry, f'{where}.{index}'))
    return stray
