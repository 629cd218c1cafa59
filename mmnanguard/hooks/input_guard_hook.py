from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmnanguard.core import Cause, GuardConfigError, GuardEvent, TrainingHalted
from mmnanguard.numerics import read_once
from mmnanguard.registry import HOOKS

from .batch_facts import sample_ids
from .find_guards import find_guards

__all__ = ['InputGuardHook']

ACTIONS = ('reject', 'sanitize', 'halt')


@HOOKS.register_module()
class InputGuardHook(Hook):
    """Looks at the inputs after the data preprocessor, before the model.

    Flags stay on the device until the update's one host read; a rejected
    update's row then has the cause 'input_nonfinite', and a row of kind
    'input' names the samples and keys.

    Args:
        action: 'reject' the update; 'sanitize' the numbers and train on
            them; 'halt' the run.
        keys: Parts of the preprocessor's output that are looked at, by
            name; None means all. Float fields of ``data_samples`` are
            'data_samples.<field>'.
        nan: What 'sanitize' puts for NaN.
        posinf: For Inf; None means the largest number of the dtype.
        neginf: For -Inf; None means the smallest.

    Raises:
        GuardConfigError: For an unknown action, or, at the start of
            training, a model without a data preprocessor.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        action: str = 'reject',
        keys: Optional[Sequence[str]] = None,
        nan: float = 0.0,
        posinf: Optional[float] = None,
        neginf: Optional[float] = None,
    ) -> None:
        if action not in ACTIONS:
            raise GuardConfigError(
                f'InputGuardHook.action is {action!r}: it must be one of '
                f'{", ".join(ACTIONS)}.'
            )
        self._action = action
        self._keys = keys
        self._numbers: Any = dict(nan=nan, posinf=posinf, neginf=neginf)
        # Per micro-batch of the window: its index, the batch, and by key a
        # flag per sample.
        self._window: List[Any] = []
        self._now: Dict[str, Tensor] = {}
        self._halt: Optional[TrainingHalted] = None
        self._undo: Callable[[], None] = lambda: None

    def before_train(self, runner: Runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
        preprocessor = getattr(model, 'data_preprocessor', None)
        if not isinstance(preprocessor, nn.Module):
            raise GuardConfigError(
                f'InputGuardHook: {type(model).__name__} has no '
                'data_preprocessor whose output could be looked at.'
            )
        forward = preprocessor.forward

        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self._look(runner, forward(*args, **kwargs))

        # Not a module hook: those are not traced once a model is compiled.
        preprocessor.forward = guarded
        self._undo = lambda: delattr(preprocessor, 'forward')

    def after_train(self, runner: Runner) -> None:
        self._undo()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        if not any(guard.losses for guard in find_guards(runner).values()):
            self._window = []
        self._now = {}
        self._window.append((batch_idx, data_batch, self._now))

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Name the samples; syncs."""
        if event.cause is not Cause.INPUT_NONFINITE:
            return
        found = self._read()
        samples = sorted({name for names in found.values() for name in names})
        runner.logger.warning(
            f'Iter {event.iter}: input is not finite: '
            + '; '.join(f'{key}: {", ".join(n)}' for key, n in found.items())
        )
        runner.call_hook(
            'after_guard_row',
            row={
                'schema': 1,
                'kind': 'input',
                'id': event.id,
                'samples': samples,
                'keys': found,
            },
        )
        if self._action == 'halt':
            self._halt = TrainingHalted(
                event,
                f'mmnanguard: halted at iteration {event.iter}: the input of '
                f'{", ".join(samples) or "another rank"} is not finite and '
                "InputGuardHook has action='halt'. Nothing was updated. Mend "
                "the samples, or set action='reject' or 'sanitize'.",
            )

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        if self._halt is not None:  # after all consequences
            raise self._halt

    def _look(self, runner: Runner, data: Any) -> Any:
        """Flag, or mend, what the model is about to get; no sync."""
        if not runner.model.training:
            return data
        return self._visit(runner, '', data)

    def _visit(
        self, runner: Runner, key: str, value: Any, in_list: bool = False
    ) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return self._check(runner, key, value, in_list)
        if isinstance(value, dict):
            parts = {
                name: self._visit(runner, join(key, name), item)
                for name, item in value.items()
            }
            return parts if type(value) is dict else type(value)(parts)
        if isinstance(value, (list, tuple)) and not hasattr(value, '_fields'):
            return type(value)(
                self._visit(runner, key, part, True) for part in value
            )
        if isinstance(value, BaseDataElement):
            for name, item in value.items():
                new = self._visit(runner, join(key, name), item, in_list)
                if new is not item:
                    value.set_data({name: new})
        return value

    def _check(
        self, runner: Runner, key: str, value: Tensor, in_list: bool
    ) -> Tensor:
        if self._keys is not None and key not in self._keys:
            return value
        if self._action == 'sanitize':
            return torch.nan_to_num(value, **self._numbers)
        bad = ~torch.isfinite(value)
        # A list has a tensor a sample, a batch has a row a sample.
        is_batch = value.dim() > 0 and not in_list
        rows = (
            bad.reshape(len(bad), -1).any(1) if is_batch else bad.any()[None]
        )
        seen = self._now.get(key)
        self._now[key] = rows if seen is None else torch.cat([seen, rows])
        for guard in find_guards(runner).values():
            guard.add_fact('input', rows.any())
        return value

    def _read(self) -> Dict[str, List[str]]:
        """Names of the bad samples, by key."""
        found: Dict[str, List[str]] = {}
        for index, batch, flags in self._window:
            names = sample_ids(batch, index)
            for key, rows in flags.items():
                bad = read_once({key: list(rows)})[key]
                # Where rows are not samples, the batch is named.
                is_named = len(bad) == len(names)
                found.setdefault(key, []).extend(
                    names[row] if is_named else f'batch {index}'
                    for row, flag in enumerate(bad)
                    if flag
                )
        return {key: names for key, names in found.items() if names}


def join(key: str, name: Any) -> str:
    return f'{key}.{name}' if key else str(name)
