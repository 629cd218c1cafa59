"""The hook that reports what the guards did and halts the run.

The guards decide in the optimizer wrappers. This hook completes their events
and hands them to all other hooks; its neighbours write scalars, freeze
averages and add to checkpoints.
"""

import logging
from datetime import datetime, timezone
from functools import partial
from typing import Collection, Dict, List, Optional, Tuple
from uuid import uuid4

from mmengine.dist import (
    broadcast_object_list,
    get_world_size,
    is_main_process,
)
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard.core import Action, Autopsy, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.update.watch import forget_watched, read_watched
from mmnanguard.registry import HOOKS
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .._shared.batch_facts import choose_sample_key, input_ranges
from .._shared.find_guards import (
    describe,
    find_guards,
    find_wrappers,
    longest_window,
    own_modules,
)
from .._shared.halt import halt
from .._shared.hook_arguments import Checkpoint, DataBatch, Outputs, Row
from .._shared.patches import PatchingHook
from .._shared.roles import EventSource
from ..events.event_log_hook import last_attempt
from ..recovery.loaded_state import LoadedState
from .bad_samples import KnownBadSamples
from .bypasses import hand_out, note_bypass
from .changed_scalars import ChangedScalars
from .ema_freeze import EmaFreeze
from .event_ids import EventIds
from .guard_checkpoint import GuardCheckpoint
from .loss_parts import LossParts, level_of, logged_losses, warn_of_no_commit
from .recent_samples import RecentSamples
from .run_scalars import LoggedValues, note_rejected, update_scalars
from .scale_replay import correct_scale
from .schedule_freeze import ScheduleFreeze
from .start_checks import check_start
from .start_warnings import warn_at_start

__all__ = ['NanGuardHook']


@HOOKS.register_module()
class NanGuardHook(PatchingHook, EventSource):
    """Reports what the guards did, and halts the run when they must.

    For each update that was not a plain step, the hook completes the event
    with the context of the iteration, writes one console line, and hands the
    event to every hook that has a method ``after_guard_event(runner, event)``,
    see :class:`GuardListener`. ``TrainingHalted`` is raised last of all.

    In each iteration, it writes scalars to every visualizer backend of the
    config (with several optimizers, ``guard/<optimizer>/...``). A line of the
    console has a counter only when it has changed:

    =================================  =====================================
    ``train/guard/skipped``            updates rejected so far
    ``train/guard/routine_overflows``  overflows at a scale not yet proven
    ``train/guard/amp_scale``          loss scale; float16 only
    ``train/guard/clip_coef``          last factor of a norm clip, (0, 1]
    ``train/guard/lr_factor``          factor on learning rates, once it has
                                       not been 1
    ``train/guard/left_out``           micro-batches left out of commits;
                                       ``accumulation='microbatch'`` only
    =================================  =====================================

    A non-finite value that the model logs stays out of MMEngine's averages,
    where it would blank the loss for a whole window; the event reports it
    instead. A window without any finite value is NaN. Beside a wrapper that
    is not guarded, the log stays as MMEngine writes it.

    The averages of an ``EMAHook`` or of mmdet's ``MeanTeacherHook`` stay as
    they were before a rejected window. A loop that enters no
    ``optim_context`` is guarded too, because the hook gives each guard the
    runner's model.

    Args:
        save_rng: Whether to save and resume the random state of every rank,
            see :class:`GuardCheckpoint`.
        sample_key: A key of the samples' metainfo that names them in all
            messages, such as 'token'. A sample without it is named by the
            first of img_path, img_id, sample_idx, lidar_path, filename,
            file_name and video_id that it has.
        schedule: What schedules with ``by_epoch=False`` count: 'iterations',
            as in MMEngine, or 'updates', so that a rejected window does not
            advance them.

    Raises:
        GuardConfigError: If ``schedule`` is neither.
    """

    # After RuntimeInfoHook (VERY_HIGH), which writes the model's log values,
    # and before the hooks that average, log or save (NORMAL and lower).
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        save_rng: bool = False,
        sample_key: Optional[str] = None,
        schedule: str = 'iterations',
    ) -> None:
        super().__init__()
        check_value(
            schedule in ('iterations', 'updates'),
            'NanGuardHook.schedule',
            schedule,
            "'iterations' or 'updates'",
        )
        self._counts_updates = schedule == 'updates'
        self._freeze = ScheduleFreeze({})
        # Now, because datasets may look for samples by name before training.
        choose_sample_key(sample_key)
        self._sample_key = sample_key
        self._checkpoint = GuardCheckpoint(save_rng)
        self._ema = EmaFreeze()
        self._guards: Dict[str, GuardProtocol] = {}
        self._modules: Dict[str, List[nn.Module]] = {}
        self._samples = RecentSamples()
        self._bad_samples = KnownBadSamples()
        self._loss_parts = LossParts()
        self._logged = LoggedValues()
        self._num_updates = 0
        self._num_backwards = 0
        self._ids = EventIds()
        self._last: Optional[Tuple[GuardProtocol, GuardEvent]] = None
        self._loaded = LoadedState()
        self._bypasses: List[BypassRow] = []

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        # MMEngine loads the checkpoint of a resume right after this stage.
        allow_mmengine_checkpoints()
        self._loaded.before_load(runner)

    def before_train(self, runner: Runner) -> None:
        choose_sample_key(self._sample_key)
        self._guards = find_guards(runner)
        check_start(runner, self._guards)
        self._loaded.look(runner)
        self.loaded, self.loaded_bad = self._loaded.path, self._loaded.names()
        wrappers = find_wrappers(runner)
        self._checkpoint.resume_guards(runner, wrappers)
        self._num_updates = self._count('num_updates')
        self._modules = own_modules(runner)
        unguarded = [name for name in wrappers if name not in self._guards]
        self._logged = LoggedValues(unguarded)
        self._logged.resume(runner.message_hub)
        longest = longest_window(runner)
        self._samples = RecentSamples(longest, runner.iter)
        self._loss_parts = LossParts(runner.iter)
        self._ema = EmaFreeze(
            runner.hooks, self._guards.values(), longest > 1, runner.model
        )
        self._ema.attach(self.patches)
        if self._counts_updates:
            self._freeze = ScheduleFreeze(self._guards)
            self._freeze.attach(runner, self.patches)
        warn_at_start(runner, self._guards)
        ChangedScalars(runner, self._guards).attach(self.patches)
        # uuid4 does not draw from the random generators that training uses.
        new_run = uuid4().hex[:8]
        for name, guard in self._guards.items():
            guard.name = name
            # Before the guard is described, with its rules.
            if len(wrappers) > 1:
                guard.policy = guard.policy.for_several()
            # A resumed guard continues the run that its checkpoint names.
            guard.run = guard.run or new_run
            self._attach(runner, guard)

    def _attach(self, runner: Runner, guard: GuardProtocol) -> None:
        """Number the attempt of a guard, and let it report to this hook."""
        # Rank 0 decides: it writes the rows that last_attempt counts, and the
        # other ranks may not see its work dir or may have drawn another run.
        message = [(guard.run, guard.attempt)]
        if is_main_process():
            last = last_attempt(runner.work_dir, guard.run)
            message = [(guard.run, max(guard.attempt, last + 1))]
        broadcast_object_list(message)
        guard.run, guard.attempt = message[0]
        note = partial(note_bypass, self._bypasses, guard.name)
        guard.attach(self, note)
        self.patches.remember(guard.detach)
        wrapper = find_wrappers(runner)[guard.name]
        say(describe(guard.name, wrapper, guard), logging.INFO, runner.logger)

    def before_train_epoch(self, runner: Runner) -> None:
        self._checkpoint.resume_rng(runner, self.patches)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        self.batch = batch_idx, data_batch
        # An event reports the values that were watched in its whole window.
        if not any(guard.is_open for guard in self._guards.values()):
            forget_watched()
        self._ema.begin_iter()
        if self._counts_updates:
            self._freeze.begin_iter(runner)
        # With several optimizers, an optimizer's loss runs through modules
        # that another optimizer trains, such as a discriminator.
        whole_model = None
        if len(self._guards) > 1:
            whole_model = runner.model
        for name, guard in self._guards.items():
            guard.bind(
                self._modules[name],
                whole_model,
                partial(self._count, 'num_steps'),
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        self.batch = None
        # Within a window no step has judged the micro-batch. The averaging
        # hooks, which come next, ask whether it was left out.
        for guard in self._guards.values():
            guard.window.judge_last()
        if self._is_used():
            self._samples.note(runner.iter, batch_idx, data_batch)
        events: List[Tuple[GuardProtocol, GuardEvent]] = []
        for guard in self._guards.values():
            for event in guard.take_events():
                events.append((guard, event))
        # Before non-finite values leave the log. A clean iteration that ends
        # its window has none.
        if events or any(guard.is_open for guard in self._guards.values()):
            self._loss_parts.note(runner.message_hub, list(outputs or {}))
        self._logged.check(
            runner.message_hub, outputs or {}, runner.logger, bool(events)
        )
        update_scalars(runner.message_hub, self._guards)
        if self._bypasses:
            hand_out(runner, self._bypasses)
        # Most iterations have no event, and the context costs host reads.
        if events:
            context = self._context(runner, batch_idx, data_batch, outputs)
        for position, (guard, event) in enumerate(events):
            batch = batch_idx, data_batch
            event = self._complete(runner, guard, event, context, batch)
            guard.complete(event)
            events[position] = self._last = guard, event
            if event.action is not Action.STEP:
                note_rejected(runner.message_hub)
            self._report(runner, event)
            if event.is_harmless_commit:
                self._loss_parts.warn_of_commit(runner, event)
            elif not event.counts:
                warn_of_no_commit(runner, guard)
            elif event.action is Action.SKIP:
                self._loss_parts.warn_of_rate(runner, guard)
        # After the reports: an event names the samples of its window.
        if self._count('num_updates') != self._num_updates:
            self._num_updates = self._count('num_updates')
            self._samples.end_window()
            self._loss_parts.in_window.clear()
        # A halt ends the run, so all events of the iteration are reported
        # before it.
        for guard, event in events:
            if event.action is Action.HALT:
                halt(runner, guard.halted(event))
        self._checkpoint.gather(runner)

    def _is_used(self) -> bool:
        """Whether the batch of this iteration is a part of any update.

        It is not if the iteration was abandoned before its backward pass.
        """
        before = self._num_backwards
        self._num_backwards = sum(
            guard.num_backwards for guard in self._guards.values()
        )
        # A loop may call loss.backward() past the wrapper every time.
        is_counted = self._num_backwards > 0
        return not is_counted or (
            self._num_backwards != before
            or self._count('num_updates') != self._num_updates
        )

    def _complete(
        self,
        runner: Runner,
        guard: GuardProtocol,
        event: GuardEvent,
        context: Dict[str, object],
        batch: Tuple[int, DataBatch],
    ) -> GuardEvent:
        """Return the event with its iteration's context; collective."""
        samples = self._samples.of(event, guard.reported_iterations)
        about = dict(
            context,
            samples=samples,
            bad_samples=self._bad_samples.among(runner, event, samples, batch),
            **self._loss_parts.of(event, runner.iter + 1),
        )
        if get_world_size() > 1:
            # Only the rank on which the fault began knows the offending batch
            # and tensors, and all ranks have to report equal events.
            message = [dict(about, params=event.params)]
            broadcast_object_list(message, src=event.ranks[0])
            about = message[0]
        # No update has made what was bad at the start.
        names = [tensor.name for tensor in event.params]
        origin = self.origin_of(names)
        if origin and CAUSES[event.cause].blames == 'weight':
            about['origin'] = origin
        event = event.replace(**about)
        return event.replace(id=self._ids.new(event))

    def origin_of(self, names: Collection[str]) -> str:
        return self._loaded.origin(names)

    def _report(self, runner: Runner, event: GuardEvent) -> None:
        """Log an event, and hand it to all hooks."""
        say(event.line(), level_of(event), runner.logger)
        runner.call_hook('after_guard_event', event=event)

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Correct the loss scale by an autopsy, and note bad samples."""
        self._bad_samples.note(row)
        if row['kind'] == Autopsy.KIND and self._last is not None:
            correct_scale(runner, *self._last, row)

    # A CheckpointHook that counts epochs saves after an epoch, and save_best
    # saves after a validation. Both run after this hook.

    def after_train_epoch(self, runner: Runner) -> None:
        self._checkpoint.gather(runner, is_due=True)

    def before_val(self, runner: Runner) -> None:
        self._checkpoint.before_val()

    def after_val(self, runner: Runner) -> None:
        self._checkpoint.after_val()

    def after_val_epoch(
        self, runner: Runner, metrics: Optional[Dict[str, float]] = None
    ) -> None:
        self._checkpoint.gather(runner, is_due=True)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        self._checkpoint.save(runner, checkpoint, find_wrappers(runner))

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        self._checkpoint.load(checkpoint)

    def _context(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch,
        outputs: Outputs,
    ) -> Dict[str, object]:
        """Return the fields of an event that the iteration knows; syncs."""
        return dict(
            iter=runner.iter + 1,
            epoch=runner.epoch + 1,
            batch_idx=batch_idx,
            losses=logged_losses(outputs or {}),
            inputs=input_ranges(data_batch),
            watched=read_watched(),
            time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )

    def _count(self, counter: str) -> int:
        """Sum a counter over all guards."""
        return sum(
            getattr(guard.state, counter) for guard in self._guards.values()
        )
