from typing import Any, Dict

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

__all__ = ['find_guards', 'find_wrappers']


def find_wrappers(runner: Runner) -> Dict[str, Any]:
    """The runner's optimizer wrappers by name; a lone one is 'default'."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return dict(wrapper.items())
    return {'default': wrapper}


def find_guards(runner: Runner) -> Dict[str, Any]:
    """The guards of those wrappers that have one."""
    return {
        name: wrapper.guard
        for name, wrapper in find_wrappers(runner).items()
        if hasattr(wrapper, 'guard')
    }
