"""The hook that plants faults, to rehearse an incident."""

from typing import Any, Callable, Dict, List, Mapping, Tuple, Union

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.registry import HOOKS

from .._shared.bare_model import bare_model
from .._shared.find_guards import find_wrappers
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .fault import Fault, find_target

__all__ = ['FaultInjectionHook']

FaultConfig = Dict[str, object]
ForwardHook = Callable[[nn.Module, object, object], object]


@HOOKS.register_module()
class FaultInjectionHook(PatchingHook):
    """A fire drill: makes numbers go bad on purpose, in any mm model.

    Works with every optimizer wrapper, so that a run can be rehearsed with
    and without the guard. Each fault strikes one tensor, of which one element
    gets a value, or which a registered function of the user changes:

    ==========  ==========================================================
    input       the first that the data preprocessor gives to the model
    activation  a module's output, before later modules see it
    loss        the loss itself; its gradient stays as it is
    grad        a gradient after backward, before the update (scaled)
    buffer      a buffer after forward, before the update
    weight      a weight between two iterations: no update can undo it
    ==========  ==========================================================

    Args:
        faults: Dicts with the keys of :class:`Fault`; or a dict of them, as
            the command line makes it from
            ``default_hooks.fire_drill.faults.0.iter=30``.

    Raises:
        GuardConfigError: At construction for a bad spec; before the first
            iteration for a regex that matches nothing in this model.
    """

    def __init__(
        self, faults: Union[List[FaultConfig], Dict[str, FaultConfig]]
    ) -> None:
        super().__init__()
        if isinstance(faults, Mapping):
            faults = list(faults.values())
        if not isinstance(faults, (list, tuple)):
            raise GuardConfigError(
                f'FaultInjectionHook.faults is {faults!r}: it must be a list '
                "such as [dict(iter=30, site='grad')]."
            )
        self.faults = [Fault.from_config(fault) for fault in faults]
        self._targets: Dict[Fault, Tuple[str, Any]] = {}
        self._pending: List[Fault] = []

    def before_train(self, runner: Runner) -> None:
        self._model = bare_model(runner.model)
        for fault in self.faults:
            self._targets[fault] = find_target(self._model, fault)
            if fault.iter > runner.max_iters:
                runner.logger.warning(
                    f'fire drill: {fault} lies behind the last iteration, '
                    f'{runner.max_iters}, and will not strike'
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        self._pending = [
            fault for fault in self.faults if fault.iter == runner.iter + 1
        ]
        for fault in list(self._pending):
            target = self._targets[fault][1]
            if fault.site == 'weight':
                self._strike(runner, fault, target)
            elif fault.site in ('input', 'activation'):
                handle = target.register_forward_hook(
                    self._output_hook(runner, fault)
                )
                self.patches.remember(handle.remove)
        if any(
            fault.site in ('loss', 'grad', 'buffer') for fault in self._pending
        ):
            for wrapper in find_wrappers(runner).values():
                self._wrap_backward(runner, wrapper)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        self.patches.undo()
        for fault in self._pending:
            runner.logger.error(
                f'fire drill: {fault} did not strike: '
                f'{self._targets[fault][0]} was not used in this iteration'
            )
        self._pending = []

    def _output_hook(self, runner: Runner, fault: Fault) -> ForwardHook:
        @torch.compiler.disable
        def hook(module: nn.Module, args: object, output: object) -> object:
            if fault not in self._pending:
                return output
            return map_first_tensor(
                output, lambda tensor: self._struck_copy(runner, fault, tensor)
            )

        changed: ForwardHook = hook
        return changed

    def _wrap_backward(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Plant faults in ``backward``, which each model runs through between
        forward and update.
        """
        backward = wrapper.backward

        @torch.compiler.disable
        def faulty_backward(loss: Tensor, **kwargs: object) -> None:
            for fault in self._pending_at('loss'):
                struck = self._struck_copy(runner, fault, loss.detach())
                # The value changes, its gradient does not.
                loss = loss + (struck - loss.detach())
            backward(loss, **kwargs)
            for fault in self._pending_at('grad'):
                param = self._targets[fault][1]
                if param.grad is not None:
                    self._strike(runner, fault, param.grad)
            # After backward: autograd refuses tensors changed in between.
            for fault in self._pending_at('buffer'):
                owner, key = self._targets[fault][1]
                self._strike(runner, fault, owner.get_buffer(key))

        self.patches.replace(wrapper, 'backward', faulty_backward)

    def _pending_at(self, site: str) -> List[Fault]:
        return [fault for fault in self._pending if fault.site == site]

    def _struck_copy(
        self, runner: Runner, fault: Fault, tensor: Tensor
    ) -> Tensor:
        tensor = tensor.clone()  # autograd and the data set keep theirs
        self._strike(runner, fault, tensor)
        return tensor

    def _strike(self, runner: Runner, fault: Fault, tensor: Tensor) -> None:
        with torch.no_grad():
            fault.strike(tensor)
        self._pending.remove(fault)
        runner.logger.warning(
            f'fire drill: iteration {fault.iter}, {fault.site} '
            f'({self._targets[fault][0]}) {fault.effect}'
        )


def map_first_tensor(value: object, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy a nested output with its first floating-point tensor changed.

    Raises:
        NanGuardError: If there is none.
    """
    is_changed = False

    def walk(item: object) -> Any:
        nonlocal is_changed
        if is_changed:
            return item
        if isinstance(item, Tensor) and item.is_floating_point():
            is_changed = True
            return change(item)
        if isinstance(item, Mapping):
            return {key: walk(part) for key, part in item.items()}
        if isinstance(item, (list, tuple)) and not hasattr(item, '_fields'):
            return type(item)(walk(part) for part in item)
        return item

    result = walk(value)
    if not is_changed:
        raise NanGuardError(
            'FaultInjectionHook: the output to be struck holds no '
            'floating-point tensor.'
        )
    return result
