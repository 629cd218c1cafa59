import math
import re
from dataclasses import dataclass, fields
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.core import GuardConfigError, NanGuardError, check_keys
from mmnanguard.registry import HOOKS

from .find_guards import find_wrappers

__all__ = ['Fault', 'FaultInjectionHook']

SITES = ('input', 'activation', 'loss', 'grad', 'buffer', 'weight')


@dataclass(frozen=True)
class Fault:
    """One planned fault.

    Attributes:
        iter: Iteration in which it strikes, from 1.
        site: One of ``SITES``.
        value: What one element becomes.
        where: Regex, searched in the names of modules (activation),
            parameters (grad, weight) or buffers (buffer); the first match in
            the model's order is struck. Not for input and loss.
    """

    iter: int
    site: str
    value: float = math.nan
    where: Optional[str] = None

    @classmethod
    def from_config(cls, config: Any) -> 'Fault':
        """Raises GuardConfigError for anything that cannot strike."""
        if not isinstance(config, Mapping):
            raise GuardConfigError(
                f'FaultInjectionHook: {config!r} must be a dict such as '
                "dict(iter=30, site='grad', value='nan')."
            )
        check_keys(
            config,
            (field.name for field in fields(cls)),
            'FaultInjectionHook.faults',
        )
        where = f'FaultInjectionHook: fault {dict(config)!r}'
        for key in ('iter', 'site'):
            if key not in config:
                raise GuardConfigError(f'{where} lacks {key!r}.')
        number, site = config['iter'], config['site']
        if not isinstance(number, int) or number < 1:
            raise GuardConfigError(
                f'{where}: iter must be an integer of at least 1; iterations '
                'count from 1, as in the log.'
            )
        if site not in SITES:
            raise GuardConfigError(
                f'{where}: site must be one of {", ".join(SITES)}.'
            )
        try:
            value = float(config.get('value', 'nan'))
        except (TypeError, ValueError):
            raise GuardConfigError(
                f"{where}: value must be 'nan', 'inf', '-inf' or a number."
            ) from None
        pattern = config.get('where')
        if pattern is not None and site in ('input', 'loss'):
            raise GuardConfigError(f'{where}: {site} takes no `where`.')
        try:
            re.compile(pattern or '')
        except re.error as error:
            raise GuardConfigError(
                f'{where}: `where` is no regex: {error}.'
            ) from None
        return cls(number, site, value, pattern)


@HOOKS.register_module()
class FaultInjectionHook(Hook):
    """A fire drill: makes numbers go bad on purpose, in any mm model.

    Works with every optimizer wrapper, so that a run can be rehearsed with
    and without the guard. One element is struck per fault:

    ==========  ==========================================================
    input       of what the data preprocessor gives to the model
    activation  of a module's output, before later modules see it
    loss        the loss itself; its gradient stays as it is
    grad        of a gradient after backward, before the update (scaled)
    buffer      of a buffer after forward, before the update
    weight      of a weight between two iterations: no update can undo it
    ==========  ==========================================================

    Args:
        faults: Dicts with the keys of :class:`Fault`; or a dict of them, as
            the command line makes it from
            ``default_hooks.fire_drill.faults.0.iter=30``.

    Raises:
        GuardConfigError: At construction for a bad spec; before the first
            iteration for a regex that matches nothing in this model.
    """

    def __init__(self, faults: Union[List[dict], Dict[str, dict]]) -> None:
        if isinstance(faults, Mapping):
            faults = list(faults.values())
        self.faults = [Fault.from_config(fault) for fault in faults]
        self._targets: Dict[Fault, Tuple[str, Any]] = {}
        self._pending: List[Fault] = []
        self._undo: List[Callable[[], None]] = []

    def before_train(self, runner: Runner) -> None:
        model = runner.model
        self._model = model.module if is_model_wrapper(model) else model
        for fault in self.faults:
            self._targets[fault] = find_target(self._model, fault)
            if fault.iter > runner.max_iters:
                runner.logger.warning(
                    f'fire drill: {fault} lies behind the last iteration, '
                    f'{runner.max_iters}, and will not strike'
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
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
                self._undo.append(handle.remove)
        if any(
            fault.site in ('loss', 'grad', 'buffer') for fault in self._pending
        ):
            for wrapper in find_wrappers(runner).values():
                self._wrap_backward(runner, wrapper)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        while self._undo:
            self._undo.pop()()
        for fault in self._pending:
            runner.logger.error(
                f'fire drill: {fault} did not strike: '
                f'{self._targets[fault][0]} was not used in this iteration'
            )
        self._pending = []

    def _output_hook(self, runner: Runner, fault: Fault) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if fault not in self._pending:
                return output
            return map_first_tensor(
                output, lambda tensor: self._struck_copy(runner, fault, tensor)
            )

        return hook

    def _wrap_backward(self, runner: Runner, wrapper: Any) -> None:
        """Between forward and update, the wrapper's backward is the one
        place that every model comes by.
        """
        backward = wrapper.backward

        def faulty_backward(loss: Tensor, **kwargs: Any) -> None:
            for fault in list(self._pending):
                if fault.site == 'loss':
                    self._told(runner, fault)
                    # The value changes, its gradient does not.
                    loss = loss + (fault.value - loss.detach())
                elif fault.site == 'buffer':
                    owner, key = self._targets[fault][1]
                    self._strike(runner, fault, owner._buffers[key])
            backward(loss, **kwargs)
            for fault in list(self._pending):
                target = self._targets[fault][1]
                if fault.site == 'grad' and target.grad is not None:
                    self._strike(runner, fault, target.grad)

        wrapper.backward = faulty_backward
        self._undo.append(lambda: delattr(wrapper, 'backward'))

    def _struck_copy(
        self, runner: Runner, fault: Fault, tensor: Tensor
    ) -> Tensor:
        tensor = tensor.clone()  # autograd and the data set keep theirs
        self._strike(runner, fault, tensor)
        return tensor

    def _strike(self, runner: Runner, fault: Fault, tensor: Tensor) -> None:
        with torch.no_grad():
            # Index of the first element, for any shape and layout.
            tensor[(0,) * tensor.dim()] = fault.value
        self._told(runner, fault)

    def _told(self, runner: Runner, fault: Fault) -> None:
        self._pending.remove(fault)
        runner.logger.warning(
            f'fire drill: iteration {fault.iter}, {fault.site} '
            f'({self._targets[fault][0]}) becomes {fault.value}'
        )


def find_target(model: nn.Module, fault: Fault) -> Tuple[str, Any]:
    """Name and object that a fault strikes."""
    if fault.site == 'loss':
        return 'the loss', None
    if fault.site == 'input':
        preprocessor = getattr(model, 'data_preprocessor', None)
        if not isinstance(preprocessor, nn.Module):
            raise GuardConfigError(
                f'FaultInjectionHook: {fault}: {type(model).__name__} has no '
                'data_preprocessor whose output could be struck; use '
                "site='activation'."
            )
        return 'the output of data_preprocessor', preprocessor
    candidates = list(_candidates(model, fault.site))
    for name, target in candidates:
        if re.search(fault.where or '', name):
            return f"'{name}'", target
    names = ', '.join(name for name, _ in candidates[:10])
    raise GuardConfigError(
        f'FaultInjectionHook: {fault} matches nothing. Names of this model '
        f'begin with: {names or "none"}.'
    )


def _candidates(model: nn.Module, site: str) -> Any:
    if site == 'activation':
        for name, module in model.named_modules():
            is_leaf = next(module.children(), None) is None
            if name and (is_leaf or not name.startswith('data_pre')):
                yield name, module
    elif site == 'buffer':
        for owner_name, owner in model.named_modules():
            for key, buffer in owner._buffers.items():
                if buffer is not None and torch.isfinite(buffer).all():
                    # (a mask of -inf is none that could go bad)
                    name = f'{owner_name}.{key}' if owner_name else key
                    if not name.startswith('data_preprocessor'):
                        yield name, (owner, key)
    else:
        for name, param in model.named_parameters():
            if site == 'weight' or param.requires_grad:
                yield name, param


def map_first_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a nested output, its first floating-point tensor changed.

    Raises:
        NanGuardError: If there is none.
    """
    found = False

    def walk(item: Any) -> Any:
        nonlocal found
        if found:
            return item
        if isinstance(item, Tensor) and item.is_floating_point():
            found = True
            return change(item)
        if isinstance(item, Mapping):
            return {key: walk(part) for key, part in item.items()}
        if isinstance(item, (list, tuple)) and not hasattr(item, '_fields'):
            return type(item)(walk(part) for part in item)
        return item

    result = walk(value)
    if not found:
        raise NanGuardError(
            'FaultInjectionHook: the output to be struck holds no '
            'floating-point tensor.'
        )
    return result
