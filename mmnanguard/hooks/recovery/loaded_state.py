"""A look at the state with which a run starts, before the first update."""

import logging
from typing import Collection, Dict, List, Optional, Set, Tuple

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    is_main_process,
)
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.core.rows.guard_event import INITIAL_ORIGIN, PRETRAINED
from mmnanguard.numerics.checkpoints.state_audit import StateAudit

from .._shared.find_guards import find_guards
from .choose_resume import (
    find_clean_beside,
    is_local,
    names_by_design,
    resume_from_clean,
)
from .kept_state import kept_state
from .pointers import LAST, read_pointer

__all__ = ['LoadedState']

MAX_NAMES = 5


class LoadedState:
    """The non-finite tensors with which a run starts.

    Attributes:
        path: The checkpoint; '' if nothing was loaded.
        bad: The pairs (where, name) of the bad tensors that were loaded.
    """

    def __init__(self) -> None:
        self.path = ''
        self.bad: Tuple[Tuple[str, str], ...] = ()
        self._by_design: Set[str] = set()
        self._initial: Set[str] = set()  # bad, but not loaded
        self._is_resumed = False

    def before_load(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from; collective.

        See :func:`resume_from_clean`. Does nothing if no checkpoint is to be
        loaded, or if one is loaded already.
        """
        if runner._has_loaded or not (runner._resume or runner._load_from):
            return
        self._by_design = names_by_design(runner)
        resume_from_clean(runner, self._by_design)

    def look(self, runner: Runner) -> None:
        """Find the bad tensors, and report those that were loaded; collective.

        Syncs the device twice if all is well.
        """
        has_loaded = runner._has_loaded
        self._is_resumed = runner._resume
        if not (has_loaded or find_guards(runner)):
            return
        if has_loaded:
            last = read_pointer(runner.work_dir, LAST)
            self.path = runner._load_from or last or ''
        kept = kept_state(runner)
        result = StateAudit(kept).check(kept)
        bad: Dict[Tuple[str, str], None] = {}
        # With sharded parameters, a rank sees only a part of the state.
        for names in all_gather_object(result.names):
            for where, name in names:
                is_new = where == 'optimizer' or name not in self._by_design
                if has_loaded and is_new:
                    bad[where, name] = None
                else:
                    self._initial.add(name)
        self.bad = tuple(bad)
        if self.bad:
            story = escape(self._story(runner))
            say(f'mmnanguard: {story}', logging.ERROR, runner.logger)

    def names(self) -> Tuple[str, ...]:
        """Return a few of the bad tensors, with the part that holds them."""
        return tuple(
            f"'{name}' ({where})" for where, name in self.bad[:MAX_NAMES]
        )

    def origin(self, names: Collection[str]) -> str:
        """Return the words on tensors that were bad at the start, or ''.

        Args:
            names: The names of tensors that are bad now.
        """
        loaded = {name for _, name in self.bad}
        if not loaded.isdisjoint(names):
            if not self._is_resumed:
                return f'{PRETRAINED}{self.path}'
            return f'as the loaded checkpoint {self.path} already had it'
        if not self._initial.isdisjoint(names):
            return INITIAL_ORIGIN
        return ''

    def _story(self, runner: Runner) -> str:
        """Return the text about bad tensors; collective."""
        more = ''
        if self.bad[MAX_NAMES:]:
            more = f' and {len(self.bad) - MAX_NAMES} more'
        story = (
            f'THE CHECKPOINT {self.path} IS BAD. These tensors are NaN or '
            f'Inf: {", ".join(self.names())}{more}. No update can repair them.'
        )
        # A run that only loads weights has no earlier checkpoint.
        if runner.iter == 0 or not is_local(self.path):
            return story
        clean: List[Optional[str]] = [None]
        if is_main_process():
            clean = [
                find_clean_beside(runner.work_dir, self.path, self._by_design)
            ]
        broadcast_object_list(clean)
        if clean[0] is None:
            return f'{story} No clean checkpoint was found beside it.'
        return f'{story} The newest clean one is {clean[0]}: --resume it.'
