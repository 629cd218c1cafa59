"""Communication hooks of DDP and FSDP, and copies of what they remember.

PowerSGD adds the error of its last compression to the next gradients. Without
a copy, the NaN of one rejected update would come back for ever.
"""

import copy
from typing import Any, Callable, Dict, Iterable, List, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    'HookState',
    'copy_hook_states',
    'have_comm_hooks',
    'name_hooks',
    'name_stepping_hooks',
    'name_unknown_hooks',
]

Hook = Tuple[Callable[..., Any], object]
TORCH_HOOKS = 'torch.distributed.algorithms'
# States of PyTorch's own hooks, by the names of their classes: a module of
# PyTorch may not exist in a build without distributed training.
COPIED = ('PowerSGDState', 'PostLocalSGDState')
# Modules of hooks that let an optimizer step within backward.
STEPPING = ('optimizer_overlap_hooks', 'ddp_zero_hook')


class HookState:
    """A copy of what the state object of a communication hook holds.

    Process groups are shared with the copy.

    Args:
        state: The state object.
    """

    def __init__(self, state: object) -> None:
        self._state = state
        self._values: Dict[str, object] = {}
        for name in names_of(state):
            self._values[name] = copy_value(getattr(state, name))

    def restore(self) -> None:
        """Give the state object the values that it was copied with."""
        for name in names_of(self._state):
            if name not in self._values:
                delattr(self._state, name)
        for name, value in self._values.items():
            setattr(self._state, name, copy_value(value))


def names_of(state: object) -> List[str]:
    """Return the names of an object's attributes, slots included."""
    names = list(getattr(state, '__dict__', ()))
    for cls in type(state).__mro__:
        slots = vars(cls).get('__slots__', ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ('__dict__', '__weakref__'):
                names.append(name)
    return [name for name in names if hasattr(state, name)]


@torch.no_grad()
def copy_value(value: Any) -> Any:
    """Copy tensors, containers and generators; share anything else."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copy_value(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(copy_value, value))
    if isinstance(value, (np.random.RandomState, np.random.Generator)):
        return copy.deepcopy(value)
    return value


def have_comm_hooks(module: nn.Module) -> bool:
    """Whether a module is one that communication hooks can be added to."""
    # Both attributes exist from the start, and a hook may come later.
    return hasattr(module, '_comm_hooks') or hasattr(module, '_comm_hook')


def copy_hook_states(modules: Iterable[nn.Module]) -> List[HookState]:
    """Copy the states of the modules' hooks that are known; no sync."""
    states = []
    for module in modules:
        for _, state in hooks_of(module):
            if is_instance_of(state, COPIED):
                states.append(HookState(state))
    return states


def hooks_of(module: nn.Module) -> List[Hook]:
    """Return the Python hooks of a DDP or FSDP module, with their states."""
    hooks: List[Hook] = list(getattr(module, '_comm_hooks', ()))
    hook = getattr(module, '_comm_hook', None)
    if hook is not None:
        hooks.append((hook, getattr(module, '_comm_hook_state', None)))
    return hooks


def name_hooks(model: nn.Module) -> List[str]:
    """Return the names of all communication hooks of a model."""
    names: List[str] = []
    for module in model.modules():
        hooks = hooks_of(module)
        names += map(name_of, hooks)
        # DDP's hooks in C++ leave their name in its logging data only.
        if not hooks and isinstance(module, DistributedDataParallel):
            name = module._get_ddp_logging_data().get('comm_hook')
            names += filter(None, [name])
    return names


def name_unknown_hooks(model: nn.Module) -> List[str]:
    """Return the names of hooks whose state is not copied."""
    names = []
    for module in model.modules():
        for hook in hooks_of(module):
            if not is_known(*hook):
                names.append(name_of(hook))
    return names


def name_stepping_hooks(model: nn.Module) -> List[str]:
    """Return the names of hooks that let an optimizer step in backward."""
    names = []
    for module in model.modules():
        for hook in hooks_of(module):
            if module_of(hook[0]).endswith(STEPPING):
                names.append(name_of(hook))
    return names


def is_known(hook: Callable[..., Any], state: object) -> bool:
    """Whether a hook remembers nothing, or a state that is copied."""
    if is_instance_of(state, COPIED):
        return True
    is_plain = state is None or isinstance(state, dist.ProcessGroup)
    # PyTorch's other states do not change, but its hooks may wrap another's.
    if module_of(hook).startswith(TORCH_HOOKS):
        return is_plain or type(state).__module__.startswith('torch.')
    is_object = hasattr(hook, '__self__') or not hasattr(hook, '__code__')
    has_closure = bool(getattr(hook, '__closure__', None))
    return is_plain and not (is_object or has_closure)


def is_instance_of(state: object, names: Tuple[str, ...]) -> bool:
    """Whether a class of PyTorch's with such a name is among the bases."""
    return any(
        cls.__name__ in names and cls.__module__.startswith(TORCH_HOOKS)
        for cls in type(state).__mro__
    )


def module_of(hook: Callable[..., Any]) -> str:
    """Return the name of the module that defines a hook."""
    return str(getattr(hook, '__module__', ''))


def name_of(hook: Hook) -> str:
    """Return the name of a hook, with the class of its state."""
    function, state = hook
    name = getattr(function, '__qualname__', type(function).__qualname__)
    if state is None or isinstance(state, dist.ProcessGroup):
        return str(name)
    return f'{name} with {type(state).__qualname__}'
