"""A copy of everything that an optimizer keeps, which can be restored.

Optimizers keep their progress in three places: in ``state`` (Adam's moments),
in ``param_groups`` (the counters of schedule-free optimizers, the distance of
Prodigy and D-Adaptation) and in attributes (the optimizer that Lookahead
wraps). :class:`OptimizerCopy` copies all three.
"""

from collections import deque
from functools import partial
from numbers import Number
from typing import Any, Callable, Collection, Dict, List, Mapping, Set

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .host_tensor import HostTensor, keep_tensor

__all__ = ['OptimizerCopy', 'owned_keys']

# Values that nothing can change in place.
CONSTANTS = (Number, str, bytes, type(None), torch.dtype)
SEQUENCES = (list, tuple, set, deque)
# The attributes that PyTorch gives every optimizer, which hold no progress.
NOT_KEPT = {
    *vars(SGD([torch.zeros(1)], lr=0.1)),
    # Schedulers check the order of calls by these counters.
    '_global_step',
    '_opt_called',
    '_step_count',
    # A fused kernel gets these for the length of one step.
    'found_inf',
    'grad_scale',
}
# Schedulers of MMEngine and of PyTorch note the first value of a key under
# the key with this prefix.
INITIAL = 'initial_'

Keep = Callable[..., object]
Restore = Callable[[object, object], object]


class OptimizerCopy:
    """A copy of the state, options and attributes of an optimizer.

    Numbers, tensors and containers of them are copied, and so are the
    attributes of wrapped optimizers and of the optimizer's own helper objects
    (such as Shampoo's preconditioners). Everything else is left alone, above
    all the parameters themselves.

    Args:
        optimizer: The optimizer.
        scheduled: The keys of ``param_groups`` that schedulers own, besides
            those whose initial value is in the group. They are not restored.
    """

    def __init__(
        self, optimizer: Optimizer, scheduled: Collection[str] = ()
    ) -> None:
        self._kept = Keeper(optimizer, scheduled).keep(optimizer)

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Make an optimizer equal to the copy, in place where possible.

        Parameters that the optimizer got after the copy lose their state, and
        their groups stay as they are.

        Args:
            optimizer: The optimizer of the copy, or the one that a strategy
                has put in its place.
        """
        Restorer().restore(optimizer, self._kept)


class Keeper:
    """Copies the values of one optimizer, each value once.

    Args:
        optimizer: The optimizer.
        scheduled: The keys of ``param_groups`` that are not restored.
    """

    def __init__(
        self, optimizer: Optimizer, scheduled: Collection[str]
    ) -> None:
        self._scheduled = scheduled
        self._package = package_of(optimizer)
        self._params: Set[int] = set()
        self._copies: Dict[int, KeptValue] = {}

    def keep(self, value: object, is_state: bool = False) -> object:
        """Return a constant as it is, or the copy of a value.

        Args:
            value: The value.
            is_state: Whether the value is a part of an optimizer's state, all
                objects of which belong to the optimizer.
        """
        if isinstance(value, CONSTANTS):
            return value
        if id(value) not in self._copies:
            copy = self._make_copy(value, is_state)
            # Noted before it is filled, because values may refer to it.
            self._copies[id(value)] = copy
            copy.fill(partial(self.keep, is_state=is_state))
        return self._copies[id(value)]

    def _make_copy(self, value: object, is_state: bool) -> 'KeptValue':
        """Return the copy of a value, still without the values in it."""
        if isinstance(value, nn.Module) or id(value) in self._params:
            return KeptValue(value)
        if isinstance(value, Tensor):
            copy = keep_tensor(value)
            return KeptValue(value) if copy is None else KeptTensor(copy)
        if isinstance(value, Optimizer):
            for group in value.param_groups:
                self._params.update(map(id, group['params']))
            return KeptOptimizer(value, self._scheduled)
        if isinstance(value, dict):
            return KeptDict(value)
        if isinstance(value, SEQUENCES):
            return KeptSequence(value)
        is_own = is_state or package_of(value) == self._package
        if is_own and hasattr(value, '__dict__') and not callable(value):
            return KeptObject(value)
        return KeptValue(value)


class Restorer:
    """Restores the values of one optimizer, each value once."""

    def __init__(self) -> None:
        self._restored: Dict[int, object] = {}

    def restore(self, now: object, kept: object) -> object:
        """Return the restored value, which is ``now`` if that can change."""
        if not isinstance(kept, KeptValue):
            return kept
        if id(kept) not in self._restored:
            target = kept.find_target(now, self.restore)
            # Noted before it is written, because values may refer to it.
            self._restored[id(kept)] = target
            kept.write(target, self.restore)
        return self._restored[id(kept)]


class KeptValue:
    """A value that is left alone.

    Args:
        value: The value.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def fill(self, keep: Keep) -> None:
        """Copy the values in the value."""

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return the object to restore, given the present value."""
        return now

    def write(self, target: Any, restore: Restore) -> None:
        """Write the copies into an object."""


class KeptTensor(KeptValue):
    """The copy of a tensor."""

    def __init__(self, copy: HostTensor) -> None:
        # Without the tensor itself, whose memory the device may need.
        self._copy = copy

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return a tensor with the content of the copy."""
        return self._copy.restore(now)


class KeptDict(KeptValue):
    """The copies of the values of a dict."""

    def fill(self, keep: Keep) -> None:
        """Copy the values of the dict."""
        self._items = keep_items(self.value, keep)

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return the present dict, or the former one if there is none."""
        return now if isinstance(now, dict) else self.value

    def write(self, target: Any, restore: Restore) -> None:
        """Make a dict equal to the copy."""
        restore_items(target, self._items, restore)


class KeptSequence(KeptValue):
    """The copies of the items of a list, tuple, set or deque."""

    def fill(self, keep: Keep) -> None:
        """Copy the items."""
        self._items = list(map(keep, self.value))

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return a sequence with the restored items."""
        before = list(now) if isinstance(now, SEQUENCES) else []
        before += [None] * (len(self._items) - len(before))
        items = list(map(restore, before, self._items))
        if isinstance(now, list):
            now[:] = items
            return now
        if isinstance(self.value, deque):
            return deque(items, self.value.maxlen)
        # A named tuple takes its items one by one.
        if hasattr(self.value, '_fields'):
            return type(self.value)(*items)
        return type(self.value)(items)


class KeptObject(KeptValue):
    """The copies of the attributes of an object."""

    def fill(self, keep: Keep) -> None:
        """Copy the attributes."""
        self._attributes = keep_items(vars(self.value), keep)

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return the object that had the attributes."""
        return self.value

    def write(self, target: Any, restore: Restore) -> None:
        """Restore the attributes."""
        for name, kept in self._attributes.items():
            setattr(target, name, restore(vars(target).get(name), kept))


class KeptOptimizer(KeptObject):
    """The copies of an optimizer's state, groups and attributes.

    Args:
        value: The optimizer.
        scheduled: The keys of ``param_groups`` that are not restored.
    """

    def __init__(self, value: Optimizer, scheduled: Collection[str]) -> None:
        super().__init__(value)
        self._scheduled = scheduled

    def fill(self, keep: Keep) -> None:
        """Copy state, groups and attributes."""
        self._state = keep_items(
            self.value.state, partial(keep, is_state=True)
        )
        self._groups: List[Dict[str, object]] = []
        for group in self.value.param_groups:
            items = dict(group)
            del items['params']
            self._groups.append(keep_items(items, keep))
        attributes = {}
        for name, item in vars(self.value).items():
            if name not in NOT_KEPT:
                attributes[name] = item
        self._attributes = keep_items(attributes, keep)

    def find_target(self, now: Any, restore: Restore) -> Any:
        """Return the present optimizer."""
        return now if isinstance(now, Optimizer) else self.value

    def write(self, target: Any, restore: Restore) -> None:
        """Restore state, groups and attributes."""
        restore_items(target.state, self._state, restore)
        for group, items in zip(target.param_groups, self._groups):
            owned = owned_keys(group, self._scheduled)
            restore_items(group, items, restore, {'params', *owned})
        super().write(target, restore)


def owned_keys(
    group: Mapping[str, object], scheduled: Collection[str]
) -> Set[str]:
    """Return the keys of a parameter group that schedulers own.

    Args:
        group: The group.
        scheduled: The keys that the run's own schedulers are known to set.
    """
    owned = set(scheduled)
    for key in group:
        if key.startswith(INITIAL):
            owned |= {key, key[len(INITIAL) :]}
    return owned


def keep_items(items: Dict[Any, object], keep: Keep) -> Dict[Any, object]:
    """Return the copies of the values of a dict."""
    return dict(zip(items, map(keep, items.values())))


def restore_items(
    target: Dict[Any, object],
    kept: Dict[Any, object],
    restore: Restore,
    left_alone: Collection[str] = (),
) -> None:
    """Make a dict equal to its copy, except for some keys."""
    # Lists, because the dict changes, and `in` for parameters needs a dict.
    for key in list(target):
        if key not in kept and key not in left_alone:
            # For example, an optimizer initializes the state of a parameter
            # that has none.
            del target[key]
    for key, item in kept.items():
        if key not in left_alone:
            # get: the state is a defaultdict, which would make an entry.
            target[key] = restore(target.get(key), item)


def package_of(value: object) -> str:
    """Return the name of the package that defines the class of a value."""
    return type(value).__module__.partition('.')[0]
