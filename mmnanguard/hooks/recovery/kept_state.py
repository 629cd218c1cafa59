"""All tensors that a run keeps from update to update, with their names."""

from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from mmnanguard.numerics.base.shards import local
from mmnanguard.numerics.base.tensor_kinds import is_ordinary
from mmnanguard.numerics.checkpoints.saved_optimizer import running_stats, walk
from mmnanguard.numerics.checkpoints.state_audit import KeptTensor
from mmnanguard.numerics.update.blame import Slice, TensorNames, plain_name

from .._shared.averages import ema_models, is_mean_teacher
from .._shared.find_guards import find_guards, find_wrappers

__all__ = ['kept_state', 'named_tensors']


def kept_state(runner: Runner) -> List[KeptTensor]:
    """Return this rank's part of all that a run keeps; no sync.

    The tensors of an average have the names of their sources. The teacher of
    a ``MeanTeacherHook`` counts as an average, although it is a part of the
    model.
    """
    wrappers = find_wrappers(runner)
    groups: List[Mapping[str, object]] = []
    slices: Dict[int, Sequence[Slice]] = {}
    for wrapper in wrappers.values():
        groups += wrapper.optimizer.param_groups
    for guard in find_guards(runner).values():
        slices.update(guard.params.slices())
    names = TensorNames([runner.model], groups, slices)
    kept = list(of_model(runner, names))
    for name, wrapper in wrappers.items():
        optimizer, params = wrapper.optimizer, params_of(wrapper.optimizer)
        if slices:
            # Of an engine, which steps on flat copies of the weights.
            engine = find_guards(runner)[name].params
            optimizer, params = engine.optimizer, engine.stepped()
            kept += of_masters(params, slices, names)
        kept += of_optimizer(optimizer, params, names)
    kept += of_averages(runner)
    return kept


def params_of(optimizer: Optimizer) -> List[Tensor]:
    """Return the parameters of an optimizer."""
    params: List[Tensor] = []
    for group in optimizer.param_groups:
        params += group['params']
    return params


def of_masters(
    params: Sequence[Tensor],
    slices: Mapping[int, Sequence[Slice]],
    names: TensorNames,
) -> Iterator[KeptTensor]:
    """Yield the flat copies of weights that an engine steps on."""
    for param in params:
        if id(param) in slices:
            for name, part in names.split(param, param.detach()):
                yield KeptTensor('optimizer', f'{name} {param.dtype}', part)


def of_model(runner: Runner, names: TensorNames) -> Iterator[KeptTensor]:
    """Yield weights, buffers, and the teacher's tensors as averages."""
    has_teacher = any(map(is_mean_teacher, runner.hooks))

    def place(name: str, usual: str) -> str:
        if has_teacher and name.startswith('teacher.'):
            return 'ema'
        return usual

    for param in runner.model.parameters():
        # A lazy module has no values before its first forward pass.
        if is_lazy(param):
            continue
        for name, part in names.split(param, param):
            where = place(name, 'weights')
            # A mask may be a frozen parameter.
            is_frozen = where == 'weights' and not param.requires_grad
            yield KeptTensor(where, name, part, is_frozen)
    buffers = dict(runner.model.named_buffers())
    # A running statistic is never a mask, so Inf in it is always bad.
    stats = running_stats(buffers)
    for key, buffer in buffers.items():
        if not is_lazy(buffer):
            name = plain_name(key)
            where = place(name, 'buffers')
            yield KeptTensor(where, name, buffer, key not in stats)


def of_optimizer(
    optimizer: Optimizer, params: Sequence[Tensor], names: TensorNames
) -> Iterator[KeptTensor]:
    """Yield the tensors and floats in the state of an optimizer."""
    # ColossalAI's optimizers hold PyTorch's.
    if not hasattr(optimizer, 'state'):
        optimizer = getattr(optimizer, 'optim', optimizer)
    for param in params:
        # The state is a defaultdict: state[param] would add an empty entry,
        # which would then get into checkpoints. An optimizer that is not
        # PyTorch's may have none.
        state: Mapping[Any, object] = getattr(optimizer, 'state', {})
        for key, value in walk(state.get(param, {})):
            parts = [(names.of_param(param), value)]
            # FSDP1 joins several parameters in a flat one. Their names apply
            # to the state only where it is cut in the same way.
            if is_sharded_alike(value, param):
                parts = names.split(param, value)
            for name, part in parts:
                yield KeptTensor('optimizer', f'{name} {key}', part)


def of_averages(runner: Runner) -> Iterator[KeptTensor]:
    """Yield the tensors of all averaged models."""
    for model in ema_models(runner.hooks):
        for name, tensor in named_tensors(model):
            yield KeptTensor('ema', plain_name(name), tensor)


def is_sharded_alike(value: object, param: Tensor) -> bool:
    """Whether the value has one element per element of the parameter."""
    # AdamW's step has the shape of a scalar parameter, but is no value of its
    # element.
    if not isinstance(value, Tensor):
        return False
    part, weights = local(value), local(param)
    # Tensors of other kinds may have no shape.
    return (
        is_ordinary(part)
        and is_ordinary(weights)
        and part.shape == weights.shape
        and value.dim() > 0
    )


def named_tensors(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Yield the parameters and buffers of a model with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()
