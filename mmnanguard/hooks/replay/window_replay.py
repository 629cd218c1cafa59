import math
from contextlib import suppress
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, cast

import torch
from mmengine.dist import get_rank
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmnanguard.core import Autopsy, GuardEvent
from mmnanguard.numerics.base.rng_state import set_rng
from mmnanguard.numerics.probe.replay import (
    Pass,
    ReplayWrapper,
    Setting,
    run_pass,
)

from .._shared.batch_samples import (
    sample_names,
    take_samples,
    tensors_of_samples,
)
from .fp32_modules_hook import in_fp32, target_of
from .isolated_message_hub import isolated_message_hub
from .window import MicroBatch

__all__ = ['WindowReplay', 'settings_of']


class WindowReplay:
    """A window that is run again, in the run itself or elsewhere.

    Args:
        model: As it was before the window; a pass leaves no trace in it.
        wrappers: Its optimizer wrappers, by name.
        settings: Of each.
        batches: The window.
    """

    def __init__(
        self,
        model: nn.Module,
        wrappers: Mapping[str, OptimWrapper],
        settings: Mapping[str, Setting],
        batches: List[MicroBatch],
    ) -> None:
        self._model: Any = model
        self._wrappers = wrappers
        self._settings = settings
        self._batches = batches

    def autopsy(
        self, event_id: str, optimizer: str, loss: Optional[float]
    ) -> Autopsy:
        """Run the window once or twice; collective where the model is.

        Args:
            event_id: Of the event.
            optimizer: Name of the one whose update was rejected.
            loss: In training, on this rank; None if that is not known.
        """
        first = self.run(looks=True)
        is_cured = None
        if self._settings[optimizer].dtype is not None:
            # The model's code may insist on half precision.
            with suppress(Exception):
                is_cured = self.run(without_autocast=optimizer).is_finite
        found = describe(event_id, first, is_cured)
        if first.origin is not None:
            rows, samples = self._name(first.origin.samples)
            found = found.replace(batch_rows=rows, samples=samples)
        is_exact = all(batch.kept.is_exact for batch in self._batches)
        if loss is not None:
            replayed = first.losses[optimizer]
            is_exact = is_exact and is_same_loss(loss, replayed)
        return found.replace(exact=is_exact)

    def confirm(self, found: Autopsy) -> Autopsy:
        """Try the remedy by one more pass, with that module in float32:
        nothing may begin there any more, and its outputs must fit where
        half precision was.
        """
        if not (found.remedy and found.module):
            return found
        try:
            with in_fp32(self._model, target_of(found)):
                tried = self.run(looks=True)
            cures = tried.is_finite or (
                tried.origin is not None
                and (tried.origin.module, tried.origin.method)
                != (found.module, found.method)
            )
        except Exception:  # of the model's own code: whatever it raises
            cures = False
        return found if cures else found.replace(remedy='')

    def run(self, looks: bool = False, without_autocast: str = '') -> Pass:
        """Run the window once, the same on every rank.

        Args:
            looks: For where it goes bad, which takes long.
            without_autocast: Name of the optimizer for which it is off.
        """
        device = next(self._model.parameters()).device.type
        settings = dict(self._settings)
        if without_autocast:
            setting = settings[without_autocast]
            settings[without_autocast] = setting._replace(dtype=None)
        stand_ins = {
            name: ReplayWrapper(wrapper, settings[name], device)
            for name, wrapper in self._wrappers.items()
        }
        batches = [batch.kept.fresh() for batch in self._batches]

        wrapper: object = stand_ins.get('default')
        if set(stand_ins) != {'default'}:
            # They pass for wrappers: see ReplayWrapper.__class__.
            wrapper = OptimWrapperDict(**cast(Dict[str, Any], stand_ins))

        def train() -> Dict[str, List[Tensor]]:
            for data, batch in zip(batches, self._batches):
                set_rng(batch.rng)
                with isolated_message_hub(batch.iter):
                    self._model.train_step(data, optim_wrapper=wrapper)
            return {name: one.losses for name, one in stand_ins.items()}

        inputs = [
            (tensor, tuple(start + row for row in rows))
            for data, (start, names) in zip(batches, self._names())
            for tensor, rows in tensors_of_samples(data, len(names))
        ]
        return run_pass(self._model, train, inputs, looks)

    @property
    def samples(self) -> List[str]:
        """Their names, in the order of the window."""
        return [name for _, names in self._names() for name in names]

    def of(self, samples: List[int]) -> 'WindowReplay':
        """The same with some of the samples only, by number."""
        batches = []
        for batch, (start, names) in zip(self._batches, self._names()):
            rows = [s - start for s in samples if 0 <= s - start < len(names)]
            data = take_samples(batch.kept.data, len(names), rows)
            if rows:
                kept = batch.kept._replace(data=data)
                batches.append(batch._replace(kept=kept))
        return WindowReplay(
            self._model, self._wrappers, self._settings, batches
        )

    def _names(self) -> Iterator[Tuple[int, List[str]]]:
        """Of each micro-batch, the number of its first sample in the window
        and the names of all.
        """
        start = 0
        for batch in self._batches:
            names = sample_names(batch.kept.data, batch.batch_idx)
            yield start, names
            start += len(names)

    def _name(
        self, samples: Tuple[int, ...]
    ) -> Tuple[Tuple[int, ...], Tuple[str, ...]]:
        """Rows and names, but not of all of a batch at once."""
        rows, names = [], []
        for start, batch in self._names():
            own = [s - start for s in samples if 0 <= s - start < len(batch)]
            if len(own) < max(len(batch), 2):
                rows += own
                names += [batch[row] for row in own]
        return tuple(rows), tuple(names)


def settings_of(
    wrappers: Mapping[str, OptimWrapper], event: GuardEvent
) -> Dict[str, Setting]:
    """How the losses of the window were made that ``event`` ended."""
    settings = {}
    for name, wrapper in wrappers.items():
        scaler = getattr(wrapper, 'loss_scaler', None)
        scale = scaler.get_scale() if scaler else 1.0
        if name == event.optimizer and event.loss_scale:
            scale = event.loss_scale['before']
        settings[name] = Setting(
            getattr(wrapper, 'cast_dtype', None),
            scale,
            accumulation_of(wrapper),
        )
    return settings


def accumulation_of(wrapper: OptimWrapper) -> int:
    """Micro-batches by which MMEngine divided the last window's losses; at
    the end of training there may be fewer.
    """
    rest = wrapper._remainder_counts
    is_rest = rest > 0 and wrapper._inner_count > wrapper._max_counts - rest
    return rest if is_rest else wrapper._accumulative_counts


def describe(event_id: str, first: Pass, is_cured: Optional[bool]) -> Autopsy:
    found = Autopsy(
        id=event_id,
        rank=get_rank(),
        repeats=not first.is_finite,
        fp32_is_finite=is_cured,
        remedy='fp32' if is_cured and not first.is_finite else '',
        outputs=first.outputs,
    )
    origin = first.origin
    if origin is None:
        return found
    return found.replace(
        phase=origin.phase,
        module=origin.module,
        module_type=origin.module_type,
        method=origin.method,
        op=origin.op,
        source=origin.source,
        dtype=origin.dtype,
        input_absmax=origin.input_absmax,
        output_absmax=origin.output_absmax,
        dtype_max=torch.finfo(getattr(torch, origin.dtype)).max,
    )


def is_same_loss(trained: float, replayed: float) -> bool:
    """A fault that did not happen again says nothing about the batch."""
    if math.isfinite(trained) and math.isfinite(replayed):
        return trained == replayed
    return True
