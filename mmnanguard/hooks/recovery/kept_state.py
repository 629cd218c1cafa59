from typing import Any, Iterator, List

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.checkpoints.saved_optimizer import running_stats, walk
from mmnanguard.numerics.checkpoints.state_audit import KeptTensor
from mmnanguard.numerics.update.blame import TensorNames, plain_name

from .._shared.bare_model import bare_model
from .._shared.find_guards import find_wrappers

__all__ = ['is_mean_teacher', 'kept_state', 'teacher_of']


def kept_state(runner: Runner) -> List[KeptTensor]:
    """All that a run keeps from update to update, of this rank; no sync.

    An average's tensors have the names of their sources. The teacher of a
    ``MeanTeacherHook`` is an average that lies in the model.
    """
    optimizers = [
        wrapper.optimizer for wrapper in find_wrappers(runner).values()
    ]
    groups = [group for each in optimizers for group in each.param_groups]
    names = TensorNames([runner.model], groups)
    return [
        *of_model(runner, names),
        *(
            each
            for optimizer in optimizers
            for each in of_optimizer(optimizer, names)
        ),
        *(
            KeptTensor('ema', plain_name(name), tensor)
            for hook in runner.hooks
            if isinstance(hook, EMAHook)
            for name, tensor in named_tensors(hook.ema_model)
        ),
    ]


def of_model(runner: Runner, names: TensorNames) -> Iterator[KeptTensor]:
    has_teacher = any(map(is_mean_teacher, runner.hooks))

    def place(name: str, usual: str) -> str:
        is_average = has_teacher and name.startswith('teacher.')
        return 'ema' if is_average else usual

    for param in runner.model.parameters():
        if is_lazy(param):
            continue
        for name, part in names.split(param, param):
            where = place(name, 'weights')
            is_frozen = where == 'weights' and not param.requires_grad
            yield KeptTensor(where, name, part, is_frozen)
    buffers = dict(runner.model.named_buffers())
    stats = running_stats(buffers)
    for key, buffer in buffers.items():
        if not is_lazy(buffer):
            name = plain_name(key)
            where = place(name, 'buffers')
            yield KeptTensor(where, name, buffer, key not in stats)


def of_optimizer(optimizer: Any, names: TensorNames) -> Iterator[KeptTensor]:
    for group in optimizer.param_groups:
        for param in group['params']:
            # Not by state[param], which would make one.
            for key, value in walk(optimizer.state.get(param, {})):
                parts = [(names.of_param(param), value)]
                if is_sharded_alike(value, param):
                    parts = names.split(param, value)
                for name, part in parts:
                    yield KeptTensor('optimizer', f'{name} {key}', part)


def is_sharded_alike(value: object, param: Tensor) -> bool:
    """Does it have an element for each of the parameter's?"""
    return (
        isinstance(value, Tensor)
        and local(value).shape == local(param).shape
        and value.dim() > 0
    )


def named_tensors(model: nn.Module) -> Iterator[Any]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def is_mean_teacher(hook: object) -> bool:
    """Whether a hook is mmdet's ``MeanTeacherHook`` or a subclass of it.

    The class is known by its name, because mmdet need not be installed.
    """
    return any(cls.__name__ == 'MeanTeacherHook' for cls in type(hook).mro())


def teacher_of(model: nn.Module) -> nn.Module:
    """Return the average that a ``MeanTeacherHook`` keeps."""
    return bare_model(model).get_submodule('teacher')
