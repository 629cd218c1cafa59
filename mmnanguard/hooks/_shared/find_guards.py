from typing import Any, Dict, Iterator, List, Set, cast

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from mmnanguard.numerics.guard_protocol import GuardedProtocol, GuardProtocol
from mmnanguard.version import __version__

__all__ = [
    'describe',
    'find_guards',
    'find_wrappers',
    'guard_facts',
    'own_modules',
]


def find_wrappers(runner: Runner) -> Dict[str, OptimWrapper]:
    """The runner's optimizer wrappers by name; a lone one is 'default'."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return dict(wrapper.items())
    return {'default': cast(OptimWrapper, wrapper)}


def find_guards(runner: Runner) -> Dict[str, GuardProtocol]:
    """The guards of those wrappers that have one."""
    return {
        name: wrapper.guard
        for name, wrapper in find_wrappers(runner).items()
        if isinstance(wrapper, GuardedProtocol)
    }


def guard_facts(guard: GuardProtocol) -> Dict[str, Any]:
    """What is guarded and by which rules; builtins only."""
    scale = guard.scaler.read()
    return {
        'optimizer': type(guard.params.optimizer).__name__,
        'num_tensors': len(list(guard.params)),
        'clip': str(guard.grad_rule or guard.clip_rule),
        'loss_scale': (
            {'value': scale.value, 'floor': scale.floor}
            if guard.scaler.is_enabled()
            else None
        ),
        'policy': guard.policy.to_dict(),
    }


def describe(name: str, wrapper: OptimWrapper, guard: GuardProtocol) -> str:
    """The one line that says what is guarded."""
    about = guard_facts(guard)
    policy = about['policy']
    dtype = str(getattr(wrapper, 'cast_dtype', 'float32'))
    scale = about['loss_scale']
    scale = (
        f'loss scale {scale["value"]:g}, floor {scale["floor"]:g}'
        if scale
        else 'no loss scale'
    )
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
        f'{type(wrapper).__name__} ({dtype.replace("torch.", "")}, {scale}), '
        f'{about["optimizer"]} with {about["num_tensors"]} tensors, '
        f'{about["clip"]}, {end} at {limits}; run {guard.run}, attempt '
        f'{guard.attempt}'
    )


def own_modules(runner: Runner) -> Dict[str, List[nn.Module]]:
    """The modules that each wrapper trains: a lone one's is the whole model,
    of several each has the largest that hold no other's parameters.
    """
    wrappers = find_wrappers(runner)
    if len(wrappers) == 1:
        return {name: [runner.model] for name in wrappers}
    return {
        name: list(
            modules_within(
                runner.model,
                {
                    id(param)
                    for group in wrapper.optimizer.param_groups
                    for param in group['params']
                },
            )
        )
        for name, wrapper in wrappers.items()
    }


def modules_within(model: nn.Module, params: Set[int]) -> Iterator[nn.Module]:
    held = {id(param) for param in model.parameters()}
    if held and held <= params:
        yield model
    elif held & params:
        for child in model.children():
            yield from modules_within(child, params)
