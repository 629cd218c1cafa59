"""All measurements of one window, brought to the host at once."""

import math
from functools import partial
from itertools import chain, islice
from statistics import median_low
from typing import (
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn

from mmnanguard.core.stability.sample import LIMITS, Largest, Operand, Sample

from ..base.host_read import read_once
from ..update.agree import take_largest
from .failsafe import Failsafe
from .grad_probe import GradProbe
from .logit_probe import LogitProbe
from .model_pass import ModelPass
from .module_hooks import listen, stop_listening
from .output_probe import OutputProbe
from .weight_probe import WeightProbe
from .without_modes import without_modes

__all__ = ['WindowProbe']

# In place of a number that no rank has.
NONE = float('-inf')
DTYPES = list(LIMITS)


class WindowProbe:
    """Measures a window from its first forward pass to its step.

    A measurement that fails does not raise: the window then has no sample.

    Args:
        modules: The modules by name, in an order that is the same on all
            ranks. Without any, only the weights are measured.
        params: The trained parameters by name, likewise.
        zeros: The names of the matrices that began with 0; new ones are
            added.
        loss_scale: The loss scale of the window; None without one.
        model: The model whose forward pass runs all operations with logits or
            operands; None if others do as well, which costs more.

    Attributes:
        failsafe: Knows why a measurement has failed on this rank.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        params: Mapping[str, nn.Parameter],
        zeros: Set[str],
        loss_scale: Union[float, Tensor, None],
        model: Optional[nn.Module] = None,
    ) -> None:
        self.failsafe = Failsafe()
        # They are kept, so that no other module gets the id of one.
        self._modules = dict(modules)
        self._names = {id(module): name for name, module in modules.items()}
        self._places = {name: place for place, name in enumerate(modules)}
        self._zeros = zeros
        self._scale: List[Tensor] = []
        has_scale = loss_scale is not None
        self._weights = WeightProbe(params, zeros, self.failsafe)
        self._of_outputs = GradProbe(self.failsafe)
        self._of_params = GradProbe(self.failsafe)
        self._outputs = OutputProbe(self._of_outputs if has_scale else None)
        if has_scale:
            self._of_params.listen_to_params(modules)
        self._logits = LogitProbe(modules, self.failsafe)
        self._pass: Optional[ModelPass] = None
        self.failsafe.run(str, self._begin, loss_scale, model)

    def _begin(
        self, scale: Union[float, Tensor, None], model: Optional[nn.Module]
    ) -> None:
        """Begin to measure what may fail on one rank only."""
        if scale is not None:
            with without_modes():
                self._scale = [torch.as_tensor(scale).reshape(())]
        # Compiled modules run neither hooks nor modes.
        if self._modules:
            # The guard and the optimizer run more operations than the model.
            self._pass = ModelPass(self._logits, model)
            listen(self)

    def before_module(self, module: nn.Module) -> None:
        """Listen to a forward pass that begins."""
        if self._pass is None:
            return
        if self.failsafe.failure:
            # The rest of the window runs as without a monitor.
            self.pause()
            return
        where = partial(self._name_of, module)
        self.failsafe.run(where, self._pass.before_module, module)

    def after_module(self, module: nn.Module, outputs: object) -> None:
        """Listen to a forward pass that ends, and note its outputs."""
        if self._pass is None:
            return
        where = partial(self._name_of, module)
        self.failsafe.run(where, self._pass.after_module, module)
        name = self._names.get(id(module))
        if name is not None:
            is_seen = self._pass.depth > 0
            self.failsafe.run(
                where, self._outputs.note, name, outputs, is_seen
            )

    def _name_of(self, module: nn.Module) -> str:
        return self._names.get(id(module), type(module).__name__)

    @property
    def is_partial(self) -> bool:
        """Whether a trained module ran outside of the model's forward pass.

        So it is with a ``train_step`` that runs other modules than the model.
        """
        if self._pass is None or self.failsafe.failure:
            return False
        return self._pass.num_seen == 0 or self._outputs.has_missed

    def pause(self) -> None:
        """Measure no forward pass until :meth:`resume`."""
        stop_listening(self)
        if self._pass is not None:
            self._pass.pause()

    def resume(self) -> None:
        """Measure forward passes again."""
        if self._pass is not None and not self.failsafe.failure:
            listen(self)
            self._pass.resume()

    def close(self) -> None:
        """Remove all that was added to the forward pass."""
        self.pause()
        self._of_outputs.close()
        self._of_params.close()

    def sample(
        self, iteration: int, lr: float, is_adaptive: bool
    ) -> Optional[Sample]:
        """Return the sample of the window, which its step has ended.

        Returns None if a measurement has failed on any rank.

        Reads the device once. Collective: with several ranks, each number is
        the largest of all ranks.

        Args:
            iteration: The iteration that ends the window, from 1.
            lr: The highest learning rate.
            is_adaptive: See :class:`Sample`.
        """
        self.close()
        small = self._logits.operands.values
        parts: List[List[float]] = []
        local: List[float] = []
        try:
            parts, local = read_largest(
                self._parts(), [s.value for s in small]
            )
            parts.append(self._dtypes())
        except Exception as error:
            self.failsafe.note(error)
        if self.failsafe.failure:
            # Other ranks wait for as many numbers.
            parts = [[NONE] * size for size in self._sizes()]
        parts.append([float(bool(self.failsafe.failure))])
        *parts, (has_failed,) = agreed(parts)
        if has_failed:
            return None
        outputs, logits, operands, of_model, grads, *rest = parts
        (scale,), moves, weights, dtypes = rest
        largest, largest_logits, smallest = {}, {}, {}
        largest_grads: Dict[str, float] = {}
        for name, place in self._places.items():
            if outputs[place] != NONE:
                dtype = DTYPES[int(dtypes[place])]
                largest[name] = Largest(outputs[place], dtype)
            if logits[place] != NONE:
                largest_logits[name] = logits[place]
            if grads[place] != NONE:
                largest_grads[name] = grads[place]
            if operands[place] != NONE:
                smallest[name] = -operands[place]
        if of_model != [NONE]:
            smallest[''] = -of_model[0]
        ratio, most_moved = self._compare(moves, weights)
        return Sample(
            iter=iteration,
            outputs=largest,
            logits=largest_logits,
            operands=self._with_source(smallest, local),
            update_ratio=ratio,
            most_moved=most_moved,
            grads=largest_grads,
            loss_scale=1.0 if scale == NONE else scale,
            lr=lr,
            is_adaptive=is_adaptive,
        )

    def _parts(self) -> List[List[List[Tensor]]]:
        """Return the measured numbers in groups, as :meth:`_sizes` says."""
        moved, before = self._weights.norms()
        small = self._logits.operands.values
        return [
            self._by_module(self._outputs.outputs.numbers()),
            self._by_module(self._logits.values),
            # The smallest is the largest of the negative numbers.
            self._by_module((s.module, -s.value) for s in small),
            [[-s.value for s in small if not s.module]],
            self._by_module(self._half_grads()),
            [self._scale],
            [[norm] for norm in moved],
            [[norm] for norm in before],
        ]

    def _sizes(self) -> List[int]:
        """Return the number of groups in each part, alike on all ranks."""
        modules, weights = len(self._places), len(self._weights.names)
        # Of the parts, and of the dtypes.
        return [*[modules] * 3, 1, modules, 1, *[weights] * 2, modules]

    def _half_grads(self) -> List[Tuple[str, Tensor]]:
        """Return numbers whose largest are the gradients made in float16."""
        numbers = self._of_outputs.grads.numbers()
        dtypes = self._outputs.dtypes()
        for name, number in self._of_params.grads.numbers():
            # Autocast makes the gradients of weights in the dtype of outputs.
            if dtypes.get(name) == 'float16':
                numbers.append((name, number))
        return numbers

    def _by_module(
        self, values: Iterable[Tuple[str, Tensor]]
    ) -> List[List[Tensor]]:
        """Return the values of each module, in the order of the modules."""
        groups: List[List[Tensor]] = [[] for _ in self._places]
        for name, value in values:
            if name in self._places:
                groups[self._places[name]].append(value)
        return groups

    def _with_source(
        self, smallest: Mapping[str, float], local: Sequence[float]
    ) -> Dict[str, Operand]:
        """Return the smallest operands with their lines on this rank."""
        ordered = sorted(zip(local, range(len(local))), reverse=True)
        operands = {name: Operand(v) for name, v in smallest.items()}
        for _, index in ordered:
            module, op, source, _ = self._logits.operands.values[index]
            if module in smallest:
                operands[module] = Operand(smallest[module], op, source)
        return operands

    def _dtypes(self) -> List[float]:
        """Return the narrowest dtype of each module, as its place."""
        narrowest = [NONE] * len(self._places)
        for name, dtype in self._outputs.dtypes().items():
            narrowest[self._places[name]] = DTYPES.index(dtype)
        return narrowest

    def _compare(
        self, moved: Sequence[float], before: Sequence[float]
    ) -> Tuple[Optional[float], Tuple[str, float]]:
        """Return the median ratio, and the matrix with the largest one."""
        ratios: Dict[str, float] = {}
        for name, move, norm in zip(self._weights.names, moved, before):
            if norm == 0:
                self._zeros.add(name)
            else:
                ratios[name] = move / norm
        # An update that was left out moves nothing.
        if not any(ratios.values()):
            return None, ('', 0.0)
        most = max(ratios, key=ratios.__getitem__)
        return median_low(ratios.values()), (most, ratios[most])


def read_largest(
    parts: Sequence[Sequence[Sequence[Tensor]]], local: Sequence[Tensor] = ()
) -> Tuple[List[List[float]], List[float]]:
    """Return the largest number of each group on this rank.

    Reads the device once.

    Args:
        parts: Groups of 0-dim tensors, in parts. An empty group gives -inf,
            and a NaN counts as inf.
        local: Other 0-dim tensors to read.

    Returns:
        The parts, and the numbers of ``local``.
    """
    groups = list(chain.from_iterable(parts))
    numbers = read_once({'groups': list(chain(*groups)), 'local': local})
    measured = iter(numbers['groups'])
    read: List[List[float]] = []
    for part in parts:
        read.append([])
        for group in part:
            largest = NONE
            for number in islice(measured, len(group)):
                if math.isnan(number):
                    number = math.inf
                largest = max(number, largest)
            read[-1].append(largest)
    return read, numbers['local']


def agreed(parts: Sequence[Sequence[float]]) -> List[List[float]]:
    """Return the largest of each number of all ranks. Collective.

    Args:
        parts: Numbers, as many in each part on all ranks.
    """
    largest = iter(take_largest(list(chain.from_iterable(parts))))
    return [list(islice(largest, len(part))) for part in parts]
