import logging
from datetime import datetime, timezone
from functools import partial
from typing import Any, Dict, List, Mapping, Optional, Set
from uuid import uuid4

import torch
from mmengine.dist import broadcast_object_list, get_world_size
from mmengine.runner import Runner
from torch import nn

from mmnanguard.core import Action, GuardConfigError, GuardEvent
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.update.watch import forget_watched, read_watched
from mmnanguard.registry import HOOKS
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .._shared.batch_facts import input_ranges
from .._shared.find_guards import (
    describe,
    find_guards,
    find_wrappers,
    own_modules,
)
from .._shared.halt import halt
from .._shared.hook_arguments import Checkpoint, DataBatch, Outputs
from .._shared.patches import PatchingHook
from .._shared.roles import EventSource, has_hook
from ..events.event_log_hook import last_attempt
from ..recovery.rollback_hook import RollbackHook
from .check_listeners import check_signatures, misspelt_methods
from .ema_freeze import EmaFreeze
from .guard_checkpoint import GuardCheckpoint
from .recent_samples import RecentSamples
from .run_scalars import drop_nonfinite, update_scalars

__all__ = ['NanGuardHook']

LEFTOVERS = {
    'fp16': "optim_wrapper=dict(type='mmnanguard.NanGuardAmpOptimWrapper', "
    'loss_scale=...)',
    'optimizer_config': 'optim_wrapper=dict(clip_grad=dict(max_norm=...))',
}


@HOOKS.register_module()
class NanGuardHook(PatchingHook, EventSource):
    """Tells what the guard did, and halts the run when it must.

    On each update that was not a plain step: completes the event with the
    iteration's context, says it in one console line, and hands it to every
    hook that has a method ``after_guard_event(runner, event)``, see
    :class:`GuardListener`. Raises ``TrainingHalted`` last of all.

    Scalars, each iteration, in every visualizer backend of the config (with
    several optimizers, ``guard/<optimizer>/...``):

    =================================  =====================================
    ``train/guard/skipped``            updates rejected so far
    ``train/guard/routine_overflows``  overflows at a scale not yet proven
    ``train/guard/amp_scale``          loss scale; float16 only
    ``train/guard/clip_coef``          last factor of a norm clip, (0, 1]
    ``train/guard/lr_factor``          of learning rates, once it is not 1
    ``train/guard/left_out``           micro-batches left out of commits;
                                       ``accumulation='microbatch'`` only
    =================================  =====================================

    A non-finite value that the model logs stays out of MMEngine's smoothed
    scalars, where it would blank the loss for a whole window; it stands in
    the event instead.

    Averages that an ``EMAHook`` or mmdet's ``MeanTeacherHook`` keeps stay as
    they were before a rejected window; a loop that enters no
    ``optim_context`` is guarded by the runner's model.

    Runs after RuntimeInfoHook, which writes the model's log values, and
    before the hooks that average, log or save (ABOVE_NORMAL).

    Args:
        save_rng: Save and resume the random state of every rank, see
            :class:`GuardCheckpoint`.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, save_rng: bool = False) -> None:
        super().__init__()
        self._checkpoint = GuardCheckpoint(save_rng)
        self._ema = EmaFreeze()
        self._guards: Dict[str, GuardProtocol] = {}
        self._modules: Dict[str, List[nn.Module]] = {}
        self._samples = RecentSamples()
        self._num_updates = 0
        self._ids: Set[str] = set()
        self._left_out: Set[str] = set()

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        # Resuming comes right after this stage.
        allow_mmengine_checkpoints()

    def before_train(self, runner: Runner) -> None:
        self._guards = find_guards(runner)
        check_rollback(self._guards, has_hook(runner, RollbackHook))
        check_signatures(runner.hooks)
        self._checkpoint.resume_guards(runner, find_wrappers(runner))
        self._num_updates = self._count('num_updates')
        self._modules = own_modules(runner)
        wrappers = find_wrappers(runner).values()
        longest = max(wrapper._accumulative_counts for wrapper in wrappers)
        self._samples = RecentSamples(longest, runner.iter)
        self._ema = EmaFreeze(
            runner.hooks, self._guards.values(), longest > 1, runner.model
        )
        self._ema.attach(self.patches)
        self._warn(runner)
        # Not from the RNGs that training draws from.
        fresh = uuid4().hex[:8]
        for name, guard in self._guards.items():
            guard.name = name
            guard.run = guard.run or fresh
            last = last_attempt(runner.work_dir, guard.run)
            # Rank 0 has the say: it writes the rows that are counted here.
            told = [(guard.run, max(guard.attempt, last + 1))]
            broadcast_object_list(told)
            guard.run, guard.attempt = told[0]
            guard.attach(self)
            self.patches.remember(guard.detach)
            runner.logger.info(
                describe(name, find_wrappers(runner)[name], guard)
            )

    def before_train_epoch(self, runner: Runner) -> None:
        self._checkpoint.resume_rng(runner, self.patches)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        if not any(guard.is_open for guard in self._guards.values()):
            forget_watched()
        self._ema.begin_iter()
        whole = runner.model if len(self._guards) > 1 else None
        for name, guard in self._guards.items():
            guard.bind(
                self._modules[name], whole, partial(self._count, 'num_steps')
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        for guard in self._guards.values():
            guard.window.judge_last()
        self._samples.note(runner.iter, batch_idx, data_batch)
        events = [
            (guard, event)
            for guard in self._guards.values()
            for event in guard.take_events()
        ]
        self._keep_logs_finite(runner, outputs or {}, bool(events))
        update_scalars(runner.message_hub, self._guards)
        if events:
            context = self._context(runner, batch_idx, data_batch, outputs)
        for position, (guard, event) in enumerate(events):
            about = dict(context, samples=self._samples.of(event))
            if get_world_size() > 1:
                # What the rank that did it knows of it, on all ranks.
                told = [dict(about, params=event.params)]
                broadcast_object_list(told, src=event.ranks[0])
                about = told[0]
            event = event.replace(**about, id=self._new_id(runner, event))
            events[position] = guard, event
            runner.logger.log(
                logging.INFO if event.is_routine else logging.WARNING,
                event.line(),
            )
            runner.call_hook('after_guard_event', event=event)
        if self._count('num_updates') != self._num_updates:
            self._num_updates = self._count('num_updates')
            self._samples.end_window()
        for guard, event in events:
            if event.action is Action.HALT:
                halt(runner, guard.halted(event))
        self._checkpoint.gather(runner)

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

    def _warn(self, runner: Runner) -> None:
        """Say loudly what is not guarded."""
        for name, wrapper in find_wrappers(runner).items():
            if name not in self._guards:
                runner.logger.error(
                    f"mmnanguard: optimizer '{name}' is run by "
                    f'{type(wrapper).__name__}: ITS UPDATES ARE NOT GUARDED. '
                    'Set optim_wrapper.type to mmnanguard.NanGuardOptimWrapper'
                    ' or mmnanguard.NanGuardAmpOptimWrapper, and leave out '
                    "--amp, which puts MMEngine's wrapper in its place. "
                    'DeepSpeed, ColossalAI and Apex cannot be guarded.'
                )
        for warning in misspelt_methods(runner.hooks):
            runner.logger.warning(f'mmnanguard: {warning}')
        for key, cure in LEFTOVERS.items():
            if runner.cfg.get(key) is not None:
                runner.logger.warning(
                    f'mmnanguard: the config has `{key}`, a 1.x key that '
                    f'MMEngine ignores. In 2.x write {cure}.'
                )

    def _context(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch,
        outputs: Outputs,
    ) -> Dict[str, Any]:
        """What the iteration adds to an event."""
        losses = {
            key: float(torch.as_tensor(value).detach())
            for key, value in (outputs or {}).items()
            if 'loss' in key and key != 'loss'
        }
        return dict(
            iter=runner.iter + 1,
            epoch=runner.epoch + 1,
            batch_idx=batch_idx,
            losses=losses,
            inputs=input_ranges(data_batch),
            watched=read_watched(),
            time=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )

    def _new_id(self, runner: Runner, event: GuardEvent) -> str:
        """Joins the rows of one event; unique in the run."""
        name = f'{event.run}-{runner.iter + 1}'
        if event.optimizer != 'default':
            name = f'{name}-{event.optimizer}'
        unique, number = name, 1
        while unique in self._ids:
            number += 1
            unique = f'{name}.{number}'
        self._ids.add(unique)
        return unique

    def _count(self, counter: str) -> int:
        """Of all guards together."""
        return sum(
            getattr(guard.state, counter) for guard in self._guards.values()
        )

    def _keep_logs_finite(
        self, runner: Runner, outputs: Mapping[str, Any], is_told: bool
    ) -> None:
        dropped = drop_nonfinite(runner.message_hub, list(outputs))
        for key, value in dropped.items():
            if not is_told and key not in self._left_out:
                self._left_out.add(key)
                runner.logger.warning(
                    f"Iter {runner.iter + 1}: the model logs '{key}' as "
                    f'{value}; such values of it are left out of the '
                    'smoothed log (said once)'
                )


def check_rollback(
    guards: Mapping[str, GuardProtocol], has_rollback: bool
) -> None:
    """Refuse guards that need a ``RollbackHook`` where there is none.

    Raises:
        GuardConfigError: If a guard is to roll back and cannot.
    """
    for name, guard in guards.items():
        if guard.policy.when_exhausted == 'rollback' and not has_rollback:
            raise GuardConfigError(
                f"optim_wrapper.guard.when_exhausted is 'rollback' (optimizer "
                f"'{name}'), which takes default_hooks=dict(rollback=dict("
                "type='mmnanguard.RollbackHook'))."
            )
