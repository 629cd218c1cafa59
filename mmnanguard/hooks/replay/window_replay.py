"""The replay of a window, in the run itself or from a dump."""

import math
from contextlib import suppress
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    cast,
)

import torch
from mmengine.dist import get_rank
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmnanguard.core import Autopsy, GuardEvent
from mmnanguard.core.rows.remedy_row import FP32
from mmnanguard.numerics.base.rng_state import RngState, set_rng
from mmnanguard.numerics.probe.module_probe import InputTensor
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
    """A window that can be run again, in several settings.

    Samples are numbered over the whole window, from 0.

    Args:
        model: The model, with its state from before the window. A replay
            leaves no trace in it.
        wrappers: The optimizer wrappers, by name.
        settings: The precision and scaling of each wrapper, by its name.
        batches: The micro-batches of the window.
    """

    def __init__(
        self,
        model: nn.Module,
        wrappers: Mapping[str, OptimWrapper],
        settings: Mapping[str, Setting],
        batches: List[MicroBatch],
    ) -> None:
        # Typing knows no ``train_step`` of a module.
        self._model: Any = model
        self._wrappers = wrappers
        self._settings = settings
        self._batches = batches
        self._blamed: Tuple[int, ...] = ()

    def autopsy(
        self,
        event_id: str,
        optimizer: str,
        loss: Optional[float],
        has_masks: bool = False,
    ) -> Autopsy:
        """Run the window once or twice. Collective if the model is.

        Args:
            event_id: The id of the event that rejected the window.
            optimizer: The name of the wrapper whose update was rejected.
            loss: The loss in training on this rank; None if it is not known.
            has_masks: Whether inputs of -inf are known to be masks.
        """
        first = self.run(looks=True, has_masks=has_masks)
        is_cured = None
        if self._settings[optimizer].dtype is not None:
            # The model's code may insist on half precision, and fails then.
            with suppress(Exception):
                is_cured = self.run_in(optimizer, dtype=None).is_finite
        autopsy = describe(event_id, first, is_cured)
        if first.origin is not None:
            autopsy = self.blame(autopsy, first.origin.samples)
        is_exact = all(batch.kept.is_exact for batch in self._batches)
        if loss is not None:
            replayed = first.losses[optimizer]
            is_exact = is_exact and is_same_loss(loss, replayed)
        return autopsy.replace(exact=is_exact)

    def blame(self, autopsy: Autopsy, samples: Sequence[int]) -> Autopsy:
        """Return the autopsy with samples at fault, given by their numbers."""
        rows, names = self._name(samples)
        if names:
            self._blamed = tuple(samples)
        return autopsy.replace(
            batch_rows=rows, samples=names, num_samples=len(self.samples)
        )

    def confirm(self, autopsy: Autopsy) -> Autopsy:
        """Try the remedy: replay with the blamed module in float32.

        The remedy is dropped unless the fault no longer begins in the module,
        and the module's float32 outputs fit where half precision was.
        """
        if not (autopsy.remedy and autopsy.module):
            return autopsy
        try:
            with in_fp32(self._model, target_of(autopsy)):
                result = self.run(looks=True)
        except Exception:
            # The model's own code may raise anything on float32 outputs.
            return autopsy.replace(remedy='')
        # A fault that begins elsewhere gets an autopsy and a remedy itself.
        is_elsewhere = result.origin is not None and (
            (result.origin.module, result.origin.method)
            != (autopsy.module, autopsy.method)
        )
        if is_elsewhere:
            return autopsy
        tried = {**autopsy.tried, 'module_fp32': result.is_finite}
        if result.is_finite:
            return autopsy.replace(tried=tried)
        return autopsy.replace(remedy='', tried=tried)

    def without(self, autopsy: Autopsy) -> 'WindowReplay':
        """Return the replay without the samples that the autopsy blames.

        On a rank that did not blame them, that is the whole window.
        """
        if not self._blamed or autopsy.rank != get_rank():
            return self
        rest = set(range(len(self.samples))).difference(self._blamed)
        return self.of(sorted(rest))

    def can_leave_out(self, autopsy: Autopsy) -> bool:
        """Whether this rank can leave out the samples that it blames.

        Each micro-batch must keep a sample: a rank that ran fewer passes
        than the other ranks would leave them waiting.
        """
        rest = self.without(autopsy)
        return rest is not self and len(rest._batches) == len(self._batches)

    def setting_of(self, optimizer: str) -> Setting:
        """Return the precision and scaling of an optimizer's losses."""
        return self._settings[optimizer]

    def lowest_scale_of(self, optimizer: str) -> float:
        """Return the lowest loss scale to try, which lets little underflow."""
        scaler = getattr(self._wrappers[optimizer], 'loss_scaler', None)
        return max(float(getattr(scaler, 'min_scale', 1.0)), 1.0)

    def run_in(self, optimizer: str, **changes: Any) -> Pass:
        """Run the window with other values in the setting of an optimizer.

        Args:
            optimizer: The name of its wrapper.
            changes: Fields of :class:`Setting` by name.
        """
        setting = self._settings[optimizer]._replace(**changes)
        return WindowReplay(
            self._model,
            self._wrappers,
            {**self._settings, optimizer: setting},
            self._batches,
        ).run()

    def run(self, looks: bool = False, has_masks: bool = False) -> Pass:
        """Run the window once, in the same way on every rank.

        Args:
            looks: Whether to find the operation at fault, which takes long.
            has_masks: Whether inputs of -inf are known to be masks.
        """
        batches = [batch.kept.fresh() for batch in self._batches]
        stubs = self._stub_wrappers()
        wrapper: object = stubs.get('default')
        if set(stubs) != {'default'}:
            # The stubs pass for wrappers: see ReplayWrapper.__class__.
            wrapper = OptimWrapperDict(**cast(Dict[str, OptimWrapper], stubs))

        def train() -> Dict[str, List[Tensor]]:
            for data, batch in zip(batches, self._batches):
                # Between micro-batches, training may have drawn numbers that
                # a replay does not draw, for example in a data loader.
                set_rng(batch.rng)
                with isolated_message_hub(batch.iter):
                    self._model.train_step(data, optim_wrapper=wrapper)
            return {name: stub.losses for name, stub in stubs.items()}

        inputs = self._input_tensors(batches)
        return run_pass(self._model, train, inputs, looks, has_masks)

    def _stub_wrappers(self) -> Dict[str, ReplayWrapper]:
        """Return a replacement of each wrapper that does not update."""
        device = next(self._model.parameters()).device.type
        stubs = {}
        for name, wrapper in self._wrappers.items():
            stubs[name] = ReplayWrapper(wrapper, self._settings[name], device)
        return stubs

    def _input_tensors(self, batches: Sequence[object]) -> List[InputTensor]:
        """Return all tensors of the batches, with the samples they hold.

        Args:
            batches: The copies of the batches that are going to be run. The
                probe knows tensors by identity.
        """
        inputs = []
        for data, (start, names) in zip(batches, self._names()):
            for tensor, rows in tensors_of_samples(data, len(names)):
                samples = tuple(start + row for row in rows)
                inputs.append((tensor, samples))
        return inputs

    @property
    def samples(self) -> List[str]:
        """The names of all samples, in the order of the window."""
        all_names: List[str] = []
        for _, names in self._names():
            all_names.extend(names)
        return all_names

    def of(self, samples: List[int]) -> 'WindowReplay':
        """Return a replay with some of the samples only.

        Args:
            samples: The numbers of the samples that are kept.
        """
        batches = []
        for batch, (start, names) in zip(self._batches, self._names()):
            rows = rows_within(samples, start, len(names))
            # Many models fail on an empty batch.
            if rows:
                data = take_samples(batch.kept.data, len(names), rows)
                kept = batch.kept._replace(data=data)
                batches.append(batch._replace(kept=kept))
        return WindowReplay(
            self._model, self._wrappers, self._settings, batches
        )

    def with_rng(self, rng: RngState) -> 'WindowReplay':
        """Return a replay with another random state in each micro-batch."""
        batches = [batch._replace(rng=rng) for batch in self._batches]
        return WindowReplay(
            self._model, self._wrappers, self._settings, batches
        )

    def _names(self) -> Iterator[Tuple[int, List[str]]]:
        """Yield first sample number and all names of each micro-batch."""
        start = 0
        for batch in self._batches:
            names = sample_names(batch.kept.data, batch.batch_idx)
            yield start, names
            start += len(names)

    def _name(
        self, samples: Sequence[int]
    ) -> Tuple[Tuple[int, ...], Tuple[str, ...]]:
        """Return rows and names of the samples that went bad.

        A micro-batch of which all samples went bad adds none, because an
        operation over the whole batch, such as a mean, blames no sample. A
        batch of one sample is named.
        """
        all_rows: List[int] = []
        all_names: List[str] = []
        for start, names in self._names():
            rows = rows_within(samples, start, len(names))
            if len(rows) < max(len(names), 2):
                all_rows.extend(rows)
                all_names.extend(map(names.__getitem__, rows))
        return tuple(all_rows), tuple(all_names)


def rows_within(samples: Sequence[int], start: int, size: int) -> List[int]:
    """Return the rows that samples of the window have in a micro-batch.

    Args:
        samples: The numbers of the samples in the window.
        start: The number of the first sample of the micro-batch.
        size: The number of samples of the micro-batch.
    """
    return [s - start for s in samples if start <= s < start + size]


def settings_of(
    wrappers: Mapping[str, OptimWrapper], event: GuardEvent
) -> Dict[str, Setting]:
    """Return the settings in which the window of ``event`` was trained."""
    settings = {}
    for name, wrapper in wrappers.items():
        scale = 1.0
        scaler = getattr(wrapper, 'loss_scaler', None)
        if scaler:
            scale = scaler.get_scale()
        # The scaler has backed off since.
        if name == event.optimizer and event.loss_scale:
            scale = event.loss_scale['before']
        settings[name] = Setting(
            getattr(wrapper, 'cast_dtype', None),
            scale,
            accumulation_of(wrapper),
        )
    return settings


def accumulation_of(wrapper: OptimWrapper) -> int:
    """Return the number that MMEngine divided the last losses by.

    At the end of training, a window may be shorter
    (MMEngine 0.10.7, optim/optimizer/optimizer_wrapper.py#L389). By now
    ``_inner_count`` has passed the window's last micro-batch.
    """
    # DeepSpeed's wrapper has none.
    rest: int = getattr(wrapper, '_remainder_counts', 0)
    # Not above 0 if nothing remains, or if the number of iterations is
    # unknown.
    if rest > 0 and wrapper._inner_count > wrapper._max_counts - rest:
        return rest
    return wrapper._accumulative_counts


def describe(event_id: str, first: Pass, is_cured: Optional[bool]) -> Autopsy:
    """Return the autopsy that a replay gives, without samples.

    Args:
        event_id: The id of the event that rejected the window.
        first: The replay in the setting of training.
        is_cured: Whether the replay without autocast was finite; None if
            there was none.
    """
    remedy = ''
    # A transient fault needs no remedy.
    if is_cured and not first.is_finite:
        remedy = FP32
    autopsy = Autopsy(
        id=event_id,
        rank=get_rank(),
        repeats=not first.is_finite,
        fp32_is_finite=is_cured,
        remedy=remedy,
        outputs=first.outputs,
    )
    origin = first.origin
    if origin is None:
        return autopsy
    return autopsy.replace(
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
        is_pole=origin.is_pole,
        operands=origin.operands,
        mask=origin.mask,
        derivative=origin.derivative,
        huge_weight=first.huge_weight,
        keys=tuple(filter(None, [origin.tensor])),
    )


def is_same_loss(trained: float, replayed: float) -> bool:
    """Whether the losses do not show that the replay was another computation.

    If a loss is not finite, they cannot show it: a transient fault that did
    not happen again says nothing about the batch.
    """
    if math.isfinite(trained) and math.isfinite(replayed):
        return trained == replayed
    return True
