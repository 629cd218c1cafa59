"""A wrong argument of a class of mmnanguard is answered with the right one."""

import inspect

import pytest
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.registry import DATASETS, HOOKS, MODELS, TRANSFORMS

REGISTRIES = (DATASETS, HOOKS, MODELS, TRANSFORMS)
CLASSES = []
for registry in REGISTRIES:
    CLASSES += [(registry, name) for name in sorted(registry.module_dict)]


def arguments_of(registry, name):
    kind = registry.module_dict[name]
    return list(inspect.signature(kind).parameters)


@pytest.mark.parametrize(('registry', 'name'), CLASSES)
def test_an_unknown_argument(registry, name):
    """Each argument without its last letter is answered with its name."""
    for argument in arguments_of(registry, name)[:3]:
        with pytest.raises(GuardConfigError) as error:
            registry.module_dict[name](**{argument[:-1]: 1})
        text = str(error.value)
        assert f"{name} has an unknown key '{argument[:-1]}'" in text
        assert f"did you mean '{argument}'" in text.lower()


def test_a_config_with_an_unknown_argument(tmp_path):
    hooks = guard_hooks()
    hooks['stability'] = dict(
        type='mmnanguard.StabilityMonitorHook', intervals=10
    )
    with pytest.raises(GuardConfigError, match="'interval'"):
        make_runner(tmp_path, wrapper(), default_hooks=hooks)


def test_other_hooks_keep_their_errors():
    with pytest.raises(TypeError, match='intervals'):
        MMENGINE_HOOKS.build(dict(type='IterTimerHook', intervals=1))
