"""All measurements of one window, brought to the host at once."""

import math
from contextlib import ExitStack
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
from .grad_probe import GradProbe
from .logit_probe import LogitProbe
from .output_probe import OutputProbe
from .weight_probe import WeightProbe

__all__ = ['WindowProbe']

# In place of a number that no rank has.
NONE = float('-inf')
DTYPES = list(LIMITS)


class WindowProbe:
    """Measures a window from its first forward pass to its step.

    Args:
        modules: The modules by name, in an order that is the same on all
            ranks. Without any, only the weights are measured.
        params: The trained parameters by name, likewise.
        zeros: The names of the matrices that began with 0; new ones are
            added.
        loss_scale: The loss scale of the window; None without one.
        model: The model whose forward pass runs all operations with logits or
            operands; None if others do as well, which costs more.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        params: Mapping[str, nn.Parameter],
        zeros: Set[str],
        loss_scale: Union[float, Tensor, None],
        model: Optional[nn.Module] = None,
    ) -> None:
        self._places = {name: place for place, name in enumerate(modules)}
        self._zeros = zeros
        self._scale: List[Tensor] = []
        if loss_scale is not None:
            self._scale = [torch.as_tensor(loss_scale).reshape(())]
        self._weights = WeightProbe(params, zeros)
        self._outputs = OutputProbe(modules, loss_scale is not None)
        self._logits = LogitProbe(modules)
        self._mode = ExitStack()
        self._added = ExitStack()
        self._grads = GradProbe(modules if self._scale else {})
        add = self._added.callback
        add(self._outputs.remove)
        add(self._grads.remove)
        # The forward passes that run now and that the mode sees, and all.
        self._depth = self._num_seen = 0
        # Dynamo would trace a mode into compiled code.
        if modules and model is None:
            self._enter()
        elif modules and model is not None:
            # The guard and the optimizer run more operations than the model.
            add(model.register_forward_pre_hook(self._enter).remove)
            end = model.register_forward_hook(self._exit, always_call=True)
            add(end.remove)

    def _enter(self, *_: object) -> None:
        if self._depth == 0:
            self._mode.enter_context(self._logits)
        self._depth += 1
        self._num_seen += 1
        self._outputs.is_seen = True

    def _exit(self, *_: object) -> None:
        # A pass that fails before its beginning has an end all the same.
        self._depth = max(self._depth - 1, 0)
        if self._depth == 0:
            self._outputs.is_seen = False
            self._mode.close()

    @property
    def is_partial(self) -> bool:
        """Whether a trained module ran outside of the model's forward pass.

        So it is with a ``train_step`` that runs other modules than the model.
        """
        is_unseen = bool(self._places) and self._num_seen == 0
        return is_unseen or self._outputs.has_missed

    def close(self) -> None:
        """Remove all that was added to the forward pass."""
        self._added.close()
        self._mode.close()

    def sample(self, iteration: int, lr: float, is_adaptive: bool) -> Sample:
        """Return the sample of the window, which its step has ended.

        Reads the device once. Collective: with several ranks, each number is
        the largest of all ranks.

        Args:
            iteration: The iteration that ends the window, from 1.
            lr: The highest learning rate.
            is_adaptive: See :class:`Sample`.
        """
        self.close()
        moved, before = self._weights.norms()
        small = self._logits.operands.values
        parts, local = read_largest(
            [
                self._by_module(self._outputs.outputs.numbers()),
                self._by_module(self._logits.values),
                # The smallest is the largest of the negative numbers.
                self._by_module((s.module, -s.value) for s in small),
                [[-s.value for s in small if not s.module]],
                self._by_module(self._half_grads()),
                [self._scale],
                [[norm] for norm in moved],
                [[norm] for norm in before],
            ],
            self._dtypes(),
            [s.value for s in small],
        )
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

    def _half_grads(self) -> List[Tuple[str, Tensor]]:
        """Return numbers whose largest are the gradients made in float16."""
        numbers = self._outputs.grads.numbers()
        dtypes = self._outputs.dtypes()
        for name, number in self._grads.grads.numbers():
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
    parts: Sequence[Sequence[Sequence[Tensor]]],
    on_host: Sequence[float],
    local: Sequence[Tensor] = (),
) -> Tuple[List[List[float]], List[float]]:
    """Return the largest number of each group, of all ranks. Collective.

    Reads the device once.

    Args:
        parts: Groups of 0-dim tensors, in parts that have as many groups on
            all ranks. An empty group gives -inf, and a NaN counts as inf.
        on_host: The last part, whose groups have one number each.
        local: Other 0-dim tensors to read, of this rank only.

    Returns:
        The parts, and the numbers of ``local``.
    """
    groups = list(chain.from_iterable(parts))
    numbers = read_once({'groups': list(chain(*groups)), 'local': local})
    largest = [NONE] * len(groups)
    measured = iter(numbers['groups'])
    for place, group in enumerate(groups):
        for number in islice(measured, len(group)):
            if math.isnan(number):
                number = math.inf
            largest[place] = max(number, largest[place])
    agreed = iter(take_largest([*largest, *on_host]))
    read = [list(islice(agreed, len(part))) for part in (*parts, on_host)]
    return read, numbers['local']
