"""The hook that plants faults, to rehearse an incident."""

import logging
from typing import Callable, Dict, List, Mapping, Optional, Tuple, Union, cast

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard._console import say
from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.registry import HOOKS

from .._shared.bare_model import bare_model
from .._shared.find_guards import find_wrappers
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .fault import Fault, FaultConfig, Target, find_target

__all__ = ['FaultInjectionHook']

ForwardHook = Callable[[nn.Module, object, object], object]


@HOOKS.register_module()
class FaultInjectionHook(PatchingHook):
    """A fire drill: makes numbers go bad on purpose, in any mm model.

    Works with every optimizer wrapper, so that a run can be rehearsed with
    and without the guard. A fault strikes a single tensor: it sets the first
    element to a value, or calls a registered function of the user. The site
    of the fault selects the tensor:

    ==========  ==========================================================
    input       the first tensor that the data preprocessor puts out
    activation  a module's output, before later modules see it
    loss        the loss itself; its gradient stays as it is
    grad        a gradient after backward, before the update (scaled);
                without ``where``, the first that there is
    buffer      a buffer after forward, before the update
    weight      a weight between two iterations: no update can undo it
    ==========  ==========================================================

    Args:
        faults: Dicts with the keys of :class:`Fault`; or a dict of them, as
            the command line makes it from
            ``default_hooks.fire_drill.faults.0.iter=30``.
        ends_at: The iteration, from 1, after which the run ends, or with its
            epoch in a loop by epochs. None trains to the end.

    Raises:
        GuardConfigError: At construction for a fault that is not allowed;
            before the first iteration for a regex that matches nothing in
            this model.
    """

    def __init__(
        self,
        faults: Union[List[FaultConfig], Dict[str, FaultConfig]],
        ends_at: Optional[int] = None,
    ) -> None:
        super().__init__()
        check_value(
            ends_at is None or is_count(ends_at, 1),
            'FaultInjectionHook.ends_at',
            ends_at,
            'an integer of at least 1, or None to train to the end',
        )
        self.ends_at = ends_at
        if isinstance(faults, Mapping):
            faults = list(faults.values())
        if not isinstance(faults, (list, tuple)):
            raise GuardConfigError(
                f'FaultInjectionHook.faults is {faults!r}: it must be a list '
                "such as [dict(iter=30, site='grad')]."
            )
        self.faults = list(map(Fault.from_config, faults))
        self._targets: Dict[Fault, Tuple[str, Target]] = {}
        self._pending: List[Fault] = []

    def before_train(self, runner: Runner) -> None:
        """Find the target of each fault."""
        model = bare_model(runner.model)
        for fault in self.faults:
            self._targets[fault] = find_target(model, fault)
            if fault.iter > runner.max_iters:
                say(
                    f'fire drill: {fault} lies behind the last iteration, '
                    f'{runner.max_iters}, and will not strike',
                    logging.WARNING,
                    runner.logger,
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        """Strike weights, and prepare the other faults of this iteration."""
        self._pending = []
        needs_backward = False
        for fault in self.faults:
            # MMEngine counts iterations from 0, its log and faults from 1.
            if fault.iter != runner.iter + 1:
                continue
            self._pending.append(fault)
            if fault.site == 'weight':
                param = cast(Tensor, self._targets[fault][1])
                self._strike(runner, fault, param)
            elif fault.site in ('input', 'activation'):
                module = cast(nn.Module, self._targets[fault][1])
                handle = module.register_forward_hook(
                    self._output_hook(runner, fault)
                )
                self.patches.remember(handle.remove)
            else:
                needs_backward = True
        if needs_backward:
            for wrapper in find_wrappers(runner).values():
                self._wrap_backward(runner, wrapper)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Undo the preparations; report the faults that did not strike."""
        # Prepared anew in each iteration that has a fault, so that all other
        # iterations run without any change.
        self.patches.undo()
        for fault in self._pending:
            say(
                f'fire drill: {fault} did not strike: '
                f'{self._targets[fault][0]} was not used in this iteration',
                logging.ERROR,
                runner.logger,
            )
        self._pending = []
        if self.ends_at is not None and runner.iter + 1 >= self.ends_at:
            runner.train_loop.stop_training = True

    def _output_hook(self, runner: Runner, fault: Fault) -> ForwardHook:
        # Dynamo must not trace the fault into a compiled model: it has side
        # effects, and later iterations run the same code.
        @torch.compiler.disable
        def hook(module: nn.Module, args: object, output: object) -> object:
            # A module may run more than once in an iteration.
            if fault not in self._pending:
                return output
            return map_first_tensor(
                output, lambda tensor: self._struck_copy(runner, fault, tensor)
            )

        changed: ForwardHook = hook
        return changed

    def _wrap_backward(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Make ``wrapper.backward`` plant the faults of this iteration."""
        # MMEngine has no hook between forward and update, but every
        # `train_step` calls `backward` there.
        backward = wrapper.backward

        @torch.compiler.disable
        def faulty_backward(loss: Tensor, **kwargs: object) -> None:
            for fault in self._pending_at('loss'):
                struck = self._struck_copy(runner, fault, loss.detach())
                # The value changes, its gradient does not.
                loss = loss + (struck - loss.detach())
            backward(loss, **kwargs)
            for fault in self._pending_at('grad'):
                # With several wrappers, another wrapper's loss may give the
                # gradient.
                grad = self._gradient_of(runner, fault)
                if grad is not None:
                    self._strike(runner, fault, grad)
            # After backward: autograd refuses tensors changed in between.
            for fault in self._pending_at('buffer'):
                target = self._targets[fault][1]
                owner, key = cast(Tuple[nn.Module, str], target)
                self._strike(runner, fault, owner.get_buffer(key))

        self.patches.replace(wrapper, 'backward', faulty_backward)

    def _gradient_of(self, runner: Runner, fault: Fault) -> Optional[Tensor]:
        """Return the gradient to be struck, if there is one yet."""
        param = cast(Tensor, self._targets[fault][1])
        if param.grad is None and fault.where is None:
            # A batch may not use the first parameter.
            for name, other in bare_model(runner.model).named_parameters():
                if other.grad is not None:
                    self._targets[fault] = (f"'{name}'", other)
                    return other.grad
        return param.grad

    def _pending_at(self, site: str) -> List[Fault]:
        return [fault for fault in self._pending if fault.site == site]

    def _struck_copy(
        self, runner: Runner, fault: Fault, tensor: Tensor
    ) -> Tensor:
        # The dataset may share the tensor's memory, and autograd may have
        # saved it for backward.
        tensor = tensor.clone()
        self._strike(runner, fault, tensor)
        return tensor

    def _strike(self, runner: Runner, fault: Fault, tensor: Tensor) -> None:
        # Autograd refuses to change a parameter in place.
        with torch.no_grad():
            fault.strike(tensor)
        self._pending.remove(fault)
        say(
            f'fire drill: iteration {fault.iter}, {fault.site} '
            f'({self._targets[fault][0]}) {fault.effect}',
            logging.WARNING,
            runner.logger,
        )


def map_first_tensor(
    value: object, change: Callable[[Tensor], Tensor]
) -> object:
    """Copy a nested output with its first floating-point tensor changed.

    Args:
        value: Tensor, or mappings, lists and tuples that hold tensors.
        change: Function that returns the new tensor.

    Raises:
        NanGuardError: If the output holds no such tensor.
    """
    is_changed = False

    def walk(item: object) -> object:
        nonlocal is_changed
        if is_changed:
            return item
        if isinstance(item, Tensor) and item.is_floating_point():
            is_changed = True
            return change(item)
        if isinstance(item, Mapping):
            return {key: walk(part) for key, part in item.items()}
        # A named tuple cannot be made from an iterable.
        if isinstance(item, (list, tuple)) and not hasattr(item, '_fields'):
            return type(item)(map(walk, item))
        return item

    result = walk(value)
    if not is_changed:
        raise NanGuardError(
            'FaultInjectionHook: the output to be struck holds no '
            'floating-point tensor.'
        )
    return result
