"""Warnings about user code that bypasses the guard."""

import logging
from contextlib import contextmanager
from typing import Callable, ClassVar, Iterable, Iterator, List, Set
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.core import Observation
from mmnanguard.core.rows.phrases import and_more
from mmnanguard.numerics.base.comm_hooks import (
    name_stepping_hooks,
    name_unknown_hooks,
)
from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.snapshot.change_tracker import ignore

from .guarded_params import GuardedParams

__all__ = ['CoverageWarnings']

# Tensors in a message, which has to stay readable.
MAX_NAMED = 5
# Number of updates in a row without a gradient, or with zeros only, after
# which this is no accident. Zeros are common for a while (a dead ReLU).
NUM_WITHOUT_GRADIENTS = 4
NUM_ZEROS = 20
# Number of updates without any other, whose loss is 0 as well.
NUM_NAUGHTS = 200
# Number of iterations without a step, beside those of two windows, after
# which the weights are looked at; and how often, and after how many more
# iterations again.
PATIENCE = 4
NUM_LOOKS = 3
REPEAT = 10
# Number of weights that are looked at.
NUM_SAMPLED = 16

MESSAGES = {
    'step': (
        'THIS UPDATE WAS NOT GUARDED: {optimizer}.step() was called past the '
        "guard. Call the wrapper's update_params(loss) or step(), and "
        'super().step() from a subclass that overrides it.'
    ),
    'other_step': (
        'THESE UPDATES ARE NOT GUARDED: {optimizer}.step() changes weights '
        'of optimizer {name!r} past the guard. Call '
        'optim_wrapper.update_params(loss) or step() in its place, and let '
        "the step() of the wrapper's own optimizer ({own}) do the rest."
    ),
    'unended': (
        'THESE UPDATES ARE NOT GUARDED: the weights of optimizer {name!r} '
        'change, and for {count} iterations no step() of its wrapper has '
        'ended a window, so nothing is judged. Let each update end in '
        'optim_wrapper.update_params(loss) or step(); a subclass that '
        'overrides them calls super().step() in place of a step of its own.'
    ),
    'no_step': (
        'NO UPDATE FOR {count} ITERATIONS: step() of the wrapper of optimizer '
        '{name!r} was not called. Let each iteration end in '
        'optim_wrapper.update_params(loss) or step(). If the loop leaves '
        'updates out, or accumulates gradients over more iterations than '
        'accumulative_counts, on purpose, this is as it should be.'
    ),
    'no_gradient': (
        'NO PARAMETER HAS A GRADIENT: {count} updates in a row of optimizer '
        '{name!r} have trained nothing. {reason}'
    ),
    'zeros': (
        'THE GRADIENT NORM IS 0: in {count} updates in a row of optimizer '
        '{name!r}, gradients are 0 or too small for a norm (below 1e-22). '
        'Look for a loss that is multiplied by a tiny number or 0, a ReLU or '
        'clamp that passes nothing on, a loss scale that is too small for '
        'float16, labels that are all ignored, or a loss that is 0 for a '
        'batch of one.'
    ),
    'hook_step': (
        'THESE UPDATES ARE NOT GUARDED: the communication hook {hooks} lets '
        'an optimizer step within backward. Register a hook without an '
        'optimizer, and let the optimizer wrapper step.'
    ),
    'hook_state': (
        'the communication hook {hooks} is not known: what it remembers from '
        'one iteration to the next is not put back if an update is rejected, '
        'and a NaN in it would come back in every later update. The states '
        "of PyTorch's own hooks (PowerSGD, post-local SGD) are put back: "
        'inherit from one of their classes, or keep nothing.'
    ),
    'model': (
        'an update came from a forward pass outside of optim_context: '
        'buffers and parameters that it changed cannot be put back, and '
        'gradients have no names. Run it inside `with '
        'optim_wrapper.optim_context(model)`, call super().optim_context '
        'from a subclass that overrides it, or add NanGuardHook, which knows '
        "the runner's model."
    ),
    'loss': (
        "an update came from a backward pass past the wrapper's own: its "
        'loss is not checked, its gradients are. Call '
        'optim_wrapper.backward(loss), and super().backward from a subclass '
        'that overrides it.'
    ),
    'copy': (
        'the state of {optimizer} cannot be copied, so its steps are not '
        'checked: a step that makes NaN of finite gradients is committed, and '
        'found by the next update. To say that this is all right: '
        "optim_wrapper.guard=dict(check_step='never')."
    ),
    'begun': (
        '{optimizer} begins its state with NaN or -Inf each time, with finite '
        'weights: it is made so, and its steps are committed from now on.'
    ),
    'clip': (
        'a subclass overrides _clip_grad: it is called once the gradients '
        'were found finite and are unscaled; what it makes of them is not '
        'checked again.'
    ),
}


# The warnings of updates that are not guarded, and of those that are, but
# train nothing. Both have a row.
NOT_GUARDED = ('step', 'other_step', 'unended', 'hook_step')
IDLE = ('no_gradient', 'zeros')


REASONS = {
    'frozen': (
        'All of its parameters have requires_grad=False. Thaw those that are '
        'to be trained; if they are frozen on purpose, this is as it should '
        'be.'
    ),
    'foreign': (
        'They are no parameters of the model: they were replaced after the '
        'optimizer was built. Build the optimizer last.'
    ),
    'other': (
        'The loss does not depend on them: look for torch.tensor(), .item(), '
        '.data, NumPy, detach() or torch.no_grad() between the parameters and '
        'the loss.'
    ),
}


class CoverageWarnings:
    """Warns, once each, about user code that bypasses the guard.

    Args:
        params: The parameters that the guard watches.
        read_name: Returns the name of the optimizer in messages.

    Attributes:
        report: Receives the message of each warning that has a row, and
            whether the updates are guarded.
        stranger: The class of the optimizer that has stepped past the guard
            since the guard's own last step; '' if none has.
    """

    report: Callable[[str, bool], None]

    def __init__(
        self, params: GuardedParams, read_name: Callable[[], str]
    ) -> None:
        self._read_name = read_name
        self.report = ignore
        self._length = 1
        self._params = params
        self.stranger = ''
        self._said: Set[str] = set()
        self._has_learnt = False
        self._num_idle = 0
        self._sums: List[int] = []
        self._num_changes = 0
        # Whether an optimizer that is not the guard's trains its weights.
        self._is_shared: WeakKeyDictionary[Optimizer, bool] = (
            WeakKeyDictionary()
        )
        AnyStep.watchers.add(self)

    def set_length(self, num_micro_batches: int) -> None:
        """Set the number of micro-batches of a window."""
        self._length = num_micro_batches

    def check_comm_hooks(self, model: nn.Module) -> None:
        """Warn of communication hooks that the guard cannot undo."""
        names = name_stepping_hooks(model)
        if names:
            self.warn_once('hook_step', hooks=', '.join(names))
        names = name_unknown_hooks(model)
        if names:
            self.warn_once('hook_state', hooks=', '.join(names))

    def note_step(self, optimizer: Optimizer) -> None:
        """Note a step of any optimizer that no guard has made."""
        if not self._params.are_bound:
            return
        kind = type(optimizer).__name__
        if optimizer is self._params.optimizer:
            self.stranger = kind
            self.warn_once('step', optimizer=kind)
            return
        if optimizer not in self._is_shared:
            watched = set(map(id, self._params))
            groups = optimizer.param_groups
            self._is_shared[optimizer] = any(
                not watched.isdisjoint(map(id, group['params']))
                for group in groups
            )
        if self._is_shared[optimizer]:
            self.stranger = kind
            own_kind = type(self._params.optimizer).__name__
            self.warn_once(
                'other_step',
                optimizer=kind,
                name=self._read_name(),
                own=own_kind,
            )

    @contextmanager
    def stepping(
        self, seen: Observation, models: Iterable[nn.Module]
    ) -> Iterator[None]:
        """Mark a step as the guard's own, and look at its gradients.

        Args:
            seen: The observation of the update, equal on all ranks.
            models: The models that the guard knows.
        """
        if seen.num_params and seen.grad_norm:
            self._num_idle, self._has_learnt = 0, True
        else:
            self._note_idle(seen, models)
        AnyStep.is_guarded = True
        try:
            yield
        finally:
            AnyStep.is_guarded = False
            self.stranger = ''

    def _note_idle(
        self, seen: Observation, models: Iterable[nn.Module]
    ) -> None:
        """Note an update that trains nothing."""
        self._num_idle += 1
        names = dict(count=str(self._num_idle), name=self._read_name())
        if seen.num_params:
            # A loss of 0 has nothing left to learn (a triplet loss), unless
            # it was 0 from the start.
            has_learnt = self._has_learnt or self._num_idle < NUM_NAUGHTS
            if self._num_idle >= NUM_ZEROS and (seen.loss or not has_learnt):
                self.warn_once('zeros', **names)
        elif self._num_idle >= NUM_WITHOUT_GRADIENTS:
            reason = REASONS[self._find_reason(models)]
            self.warn_once('no_gradient', reason=reason, **names)

    def _find_reason(self, models: Iterable[nn.Module]) -> str:
        """Return why no parameter has a gradient, as a key of REASONS."""
        if not any(param.requires_grad for param in self._params):
            return 'frozen'
        known: Set[int] = set()
        for model in models:
            known.update(map(id, model.parameters()))
        is_foreign = known.isdisjoint(map(id, self._params))
        return 'foreign' if known and is_foreign else 'other'

    def look_for_bypass(self, num_iters: int, is_open: bool) -> None:
        """Look whether weights change although no window ends.

        Three iterations in a row must change most of the weights: a model
        may change some of its weights itself, and a rollback changes all of
        them once. Syncs the device, but in few iterations.

        Args:
            num_iters: The iterations since the last step, this included.
            is_open: Whether backward passes of the wrapper have run.
        """
        length = self._length
        number = num_iters - PATIENCE - 2 * length
        if number < 0 or not self._said.isdisjoint(('step', 'other_step')):
            return
        names = dict(count=str(num_iters), name=self._read_name())
        # One of several optimizers may well wait for its turn.
        if number == REPEAT * length and (
            is_open or not self._params.foreign()
        ):
            self.warn_once('no_step', **names)
        number %= REPEAT * length
        if number > NUM_LOOKS:
            return
        before, self._sums = self._sums, self._sum_weights()
        if number == 0:
            self._num_changes = 0
            return
        changes = sum(map(int.__ne__, before, self._sums))
        if 2 * changes > len(self._sums):
            self._num_changes += 1
        if self._num_changes == NUM_LOOKS:
            self.warn_once('unended', **names)

    @torch.no_grad()
    def _sum_weights(self) -> List[int]:
        """Return a sum of the bytes of a few trained weights. Syncs."""
        foreign = self._params.foreign()
        weights = []
        for param in self._params:
            if param.requires_grad and id(param) not in foreign:
                weights.append(local(param))
        step = len(weights) // NUM_SAMPLED + 1
        return list(map(sum_bytes, weights[::step]))

    def warn_left_alone(self, lost: List[str], unread: List[str]) -> None:
        """Name tensors that the guard cannot copy or judge.

        Args:
            lost: Tensors that cannot be copied.
            unread: Tensors that can be, but whose numbers cannot be read.
        """
        for names, consequence in (
            (
                lost,
                'cannot be copied: forward passes of rejected updates '
                'leave their changes there, and NaN is not looked for',
            ),
            (unread, 'cannot be read: NaN in it is not found'),
        ):
            # Micro-batches have a tracker of their own, which reports again.
            new = [name for name in names if name not in self._said]
            self._said.update(new)
            if new:
                listed = ', '.join(new[:MAX_NAMED])
                more = and_more(len(new) - MAX_NAMED)
                say(
                    f'mmnanguard: {escape(listed)}{more} {consequence} (said '
                    'once)',
                    logging.WARNING,
                )

    def warn_once(self, kind: str, **names: str) -> None:
        """Log a message the first time.

        Args:
            kind: The key of the message.
            names: The words to put into the message.
        """
        if kind in self._said:
            return
        self._said.add(kind)
        message = MESSAGES[kind].format(**names)
        say(f'mmnanguard: {message} (said once)', logging.WARNING)
        if kind in NOT_GUARDED + IDLE:
            self.report(message, kind in IDLE)


class AnyStep:
    """Reports the steps of all optimizers that no guard has made.

    An optimizer's own hook does not see the steps of another one that trains
    the same weights, such as the base optimizer of SAM.

    Attributes:
        watchers: The guards that want to know.
        is_guarded: Whether a guard makes the present step.
    """

    watchers: ClassVar['WeakSet[CoverageWarnings]'] = WeakSet()
    is_guarded: ClassVar[bool] = False

    @classmethod
    def after(cls, optimizer: Optimizer, *_: object) -> None:
        """Report a step."""
        if not cls.is_guarded:
            # A list, because garbage collection may shrink the set meanwhile.
            for watcher in list(cls.watchers):
                watcher.note_step(optimizer)


register_optimizer_step_post_hook(AnyStep.after)


def sum_bytes(tensor: Tensor) -> int:
    """Return the sum of a tensor's bytes, which NaN does not hide. Syncs."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    content = tensor.detach().contiguous().view(-1)
    return int(content.view(torch.uint8).sum(dtype=torch.int64))
