"""All tensors that a run keeps from update to update, with their names."""

from typing import Any, Dict, Iterator, List

from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.checkpoints.saved_optimizer import running_stats, walk
from mmnanguard.numerics.checkpoints.state_audit import KeptTensor
from mmnanguard.numerics.update.blame import TensorNames, plain_name

from .._shared.averages import ema_models, is_mean_teacher
from .._shared.find_guards import find_wrappers

__all__ = ['kept_state']


def kept_state(runner: Runner) -> List[KeptTensor]:
    """Return all that a run keeps from update to update, of this rank.

    No sync.

    An average's tensors have the names of their sources. The teacher of a
    ``MeanTeacherHook`` is an average that lies in the model.
    """
    optimizers = [
        wrapper.optimizer for wrapper in find_wrappers(runner).values()
    ]
    groups: List[Dict[str, Any]] = []
    for optimizer in optimizers:
        groups += optimizer.param_groups
    names = TensorNames([runner.model], groups)
    kept = [*of_model(runner, names)]
    for optimizer in optimizers:
        kept += of_optimizer(optimizer, names)
    kept += of_averages(runner)
    return kept


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


def of_averages(runner: Runner) -> Iterator[KeptTensor]:
    for model in ema_models(runner.hooks):
        for name, tensor in named_tensors(model):
            yield KeptTensor('ema', plain_name(name), tensor)


def is_sharded_alike(value: object, param: Tensor) -> bool:
    """Whether the value has an element for each of the parameter's."""
    return (
        isinstance(value, Tensor)
        and local(value).shape == local(param).shape
        and value.dim() > 0
    )


def named_tensors(model: nn.Module) -> Iterator[Any]:
    yield from model.named_parameters()
    yield from model.named_buffers()
