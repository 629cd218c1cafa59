"""The guarded optimizer wrappers of a runner, and a description of each."""

from typing import Any, Dict, Iterator, List, Set, cast

from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from mmnanguard.core import NoClip
from mmnanguard.core.how_to_guard import how_to_guard
from mmnanguard.numerics.guard_protocol import GuardedProtocol, GuardProtocol
from mmnanguard.version import __version__

from .bare_model import bare_model

__all__ = [
    'describe',
    'find_guards',
    'find_schedulers',
    'find_wrappers',
    'guard_facts',
    'how_to_guard_wrapper',
    'is_within_window',
    'longest_window',
    'own_modules',
    'window_length',
]


def find_wrappers(runner: Runner) -> Dict[str, OptimWrapper]:
    """Return the runner's optimizer wrappers by name.

    A single wrapper, which has no name in MMEngine, is 'default'.
    """
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return dict(wrapper.items())
    return {'default': cast(OptimWrapper, wrapper)}


def find_guards(runner: Runner) -> Dict[str, GuardProtocol]:
    """Return the guards of the wrappers that have a guard, by name."""
    guards = {}
    for name, wrapper in find_wrappers(runner).items():
        # By protocol: hooks do not import the classes of `mmnanguard.optim`.
        if isinstance(wrapper, GuardedProtocol):
            guards[name] = wrapper.guard
    return guards


def how_to_guard_wrapper(wrapper: BaseOptimWrapper) -> str:
    """Return what to do so that a wrapper's updates are guarded."""
    return how_to_guard([kind.__name__ for kind in type(wrapper).__mro__])


def find_schedulers(runner: Runner) -> Dict[str, List[Any]]:
    """Return the schedulers of each optimizer, by the optimizer's name."""
    schedulers: Any = runner.param_schedulers or []
    by_name = {}
    for name in find_wrappers(runner):
        # MMEngine has a dict if there are several optimizers.
        if isinstance(schedulers, dict):
            by_name[name] = schedulers.get(name) or []
        else:
            by_name[name] = schedulers
    return by_name


def guard_facts(guard: GuardProtocol) -> Dict[str, Any]:
    """Return the guarded optimizer and the guard's rules; builtins only."""
    scale = None
    if guard.scaler.is_enabled():
        values = guard.scaler.read()
        scale = {'value': values.value, 'floor': values.floor}
    clip = str(guard.grad_rule or guard.clip_rule)
    if guard.params.engine_clip:
        engine_clip = (
            f'gradient_clipping={guard.params.engine_clip:g} of DeepSpeed'
        )
        if isinstance(guard.clip_rule, NoClip):
            clip = engine_clip
        else:
            clip += f', then {engine_clip}'
    return {
        'optimizer': type(guard.params.optimizer).__name__,
        'num_tensors': sum(param.requires_grad for param in guard.params),
        'clip': clip,
        'loss_scale': scale,
        'policy': guard.policy.to_dict(),
    }


def describe(name: str, wrapper: OptimWrapper, guard: GuardProtocol) -> str:
    """Return two lines that say what is guarded, and by which rules.

    Args:
        name: Name of the wrapper among the runner's wrappers.
        wrapper: The guarded wrapper.
        guard: Guard of the wrapper.
    """
    facts = guard_facts(guard)
    policy = facts['policy']
    # Only the AMP wrapper has a `cast_dtype`, and DeepSpeed's a `dtype`.
    dtype = getattr(wrapper, 'cast_dtype', None)
    dtype = str(dtype or getattr(wrapper, 'dtype', 'float32'))
    scale_text = 'no loss scale'
    if facts['loss_scale']:
        scale = facts['loss_scale']
        scale_text = f'loss scale {scale["value"]:g}, floor {scale["floor"]:g}'
    end = 'goes back' if policy['when_exhausted'] == 'rollback' else 'halts'
    limits = (
        f'max_consecutive_skips={policy["max_consecutive_skips"]}, '
        f'max_skip_rate={policy["max_skip_rate"]} of '
        f'{policy["skip_rate_window"]}'
    )
    if policy['divergence']:
        limits += ', or divergence'
    return (
        f"mmnanguard {__version__} guards optimizer '{name}': "
        f'{type(wrapper).__name__} ({dtype.replace("torch.", "")}, '
        f'{scale_text}), '
        f'{facts["optimizer"]} with {facts["num_tensors"]} tensors, '
        f'{facts["clip"]}\n  {end} at {limits}; run {guard.run}, attempt '
        f'{guard.attempt}'
    )


def own_modules(runner: Runner) -> Dict[str, List[nn.Module]]:
    """Return the modules that each wrapper trains, by the wrapper's name.

    A single wrapper trains the whole model. With several wrappers, each has
    the largest modules that hold no parameter of another wrapper.
    """
    wrappers = find_wrappers(runner)
    if len(wrappers) == 1:
        (name,) = wrappers
        # Frozen modules included, which may be in no param group. The wrapper
        # of an engine is no module.
        model = runner.model
        if not isinstance(model, nn.Module):
            model = bare_model(model)
        return {name: [model]}
    modules = {}
    for name, wrapper in wrappers.items():
        # Ids, because `==` of tensors compares their elements.
        params: Set[int] = set()
        for group in wrapper.optimizer.param_groups:
            params.update(map(id, group['params']))
        modules[name] = list(modules_within(runner.model, params))
    return modules


def modules_within(model: nn.Module, params: Set[int]) -> Iterator[nn.Module]:
    """Yield the largest modules whose parameters are all among ``params``.

    Args:
        model: Module to search, itself included.
        params: Ids of parameters.
    """
    model_params = set(map(id, model.parameters()))
    # A module without parameters would be a part of any set.
    if model_params and model_params <= params:
        yield model
    elif model_params & params:
        for child in model.children():
            yield from modules_within(child, params)


def is_within_window(runner: Runner) -> bool:
    """Whether a window of gradient accumulation is open."""
    return any(guard.is_open for guard in find_guards(runner).values())


def longest_window(runner: Runner) -> int:
    """Return the number of iterations of the longest window."""
    return max(map(window_length, find_wrappers(runner).values()))


def window_length(wrapper: BaseOptimWrapper) -> int:
    """Return the number of iterations of the wrapper's longest window."""
    # Wrappers that are not guarded may count by themselves.
    return getattr(wrapper, '_accumulative_counts', 1)
