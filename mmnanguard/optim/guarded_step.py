"""The end of a window: observe, agree, decide, apply or restore, report."""

import math
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

from torch import Tensor
from torch.optim import Optimizer

from mmnanguard._console import say
from mmnanguard.core import Action, BadTensor, Cause, ScaleMove, decide
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.rules.decide import fails_again
from mmnanguard.numerics.snapshot.tensor_backup import TensorBackup
from mmnanguard.numerics.update.agree import agree
from mmnanguard.numerics.update.apply import scaled_lr
from mmnanguard.numerics.update.blame import blame
from mmnanguard.numerics.update.observe import diagnose, find_suspects, observe

from .empty_buffers import find_empty_buffers
from .guard import Guard
from .guarded_params import GuardedParams
from .lost_windows import judge_micro_batches
from .resolve_clip_names import resolve_clip_names
from .step_check import StepTrial, begin_trial, end_trial

__all__ = ['guarded_step']

# Number of commits after a start, resume or change of optimizer whose steps
# are checked. Parameters are copied in these windows anyway.
NUM_CHECKED = 3
# A step on gradients with a norm above this is always checked. Below it, the
# fourth power of each element fits float32, and so does a sum of squares, as
# Adagrad has it, over 3e20 steps.
ABSURD_NORM = 1e9
# Above this rate a step can overflow float32 although its gradient is finite.
LARGEST_LR = 1e9


def guarded_step(
    guard: Guard, optimizer: Optimizer, **step_kwargs: Any
) -> None:
    """End a window: its update is committed, or it leaves no trace.

    Forward and backward passes have run; the gradients are still scaled and
    not clipped. Syncs the device once; a rejected update costs a few syncs
    more. With several ranks it is collective, and all ranks reach the same
    verdict.

    Args:
        guard: The guard of the optimizer.
        optimizer: The wrapper's optimizer.
        step_kwargs: Arguments of ``optimizer.step``.

    Raises:
        GuardConfigError: If the update cannot be guarded (a closure,
            parameters in half precision).
        TrainingHalted: If the verdict is HALT or ROLLBACK and no hook is
            attached that will handle it later.
    """
    window = guard.window
    if not window.has_gradients:
        window.sum_gradients()
    params, grads = guard.collect(optimizer, **step_kwargs)
    if guard.grad_rule is not None:
        resolve_clip_names(guard, params)
    bad_settings, settings_on_device = guard.params.read_settings()
    scale = guard.scaler.read(optimizer)
    norm_type = guard.clip_rule.norm_type

    # Observe, and agree with the other ranks
    local, reading = observe(
        grads,
        window.losses,
        window.facts,
        window.snapshot,
        scale,
        norm_type,
        guard.place(params),
        settings_on_device,
    )
    if bad_settings:
        local = replace(local, step_is_finite=False)
    seen = agree(local, norm_type)
    weights: List[Tensor] = []
    spoiler: Optional[GuardedParams] = None
    if not seen.is_clean:
        reading, weights = find_suspects(
            local, reading, window.snapshot, guard.weights()
        )
        local = diagnose(local, reading, grads, weights)
        if not local.weights_are_finite:
            spoiler = guard.params.find_spoiler(weights)
            local = replace(local, last_step_is_finite=spoiler is None)
        seen = agree(local, norm_type)
    seen = window.complete(seen)

    # Decide
    clip = guard.clip_rule.coefficient
    verdict = decide(seen, guard.state, guard.policy, clip)

    # Apply, or restore
    bad: Tuple[BadTensor, ...] = ()
    evidence: Dict[str, List[str]] = {}
    if verdict.cause is not Cause.NONE:
        bad = blame(
            verdict.cause,
            params,
            grads,
            weights,
            reading,
            scale.carried,
            guard.names(),
        )
    lr = guard.params.highest_lr()
    if verdict.action is Action.STEP:
        trial: Optional[StepTrial] = None
        is_trial = is_checked(guard, seen.grad_norm * verdict.clip_coef)
        if is_trial:
            trial = begin_trial(optimizer, guard.params.stepped())
        with guard.coverage_warnings.stepping(seen, guard.models), scaled_lr(
            optimizer, verdict.lr_factor
        ):
            guard.params.apply_update(
                optimizer,
                params,
                grads,
                scale.carried,
                verdict.clip_coef,
                guard.grad_rule,
                **step_kwargs,
            )
        if guard.params.has_refused:
            # An engine's own norm has overflowed, in its own precision.
            seen = replace(seen, grad_norm=math.inf)
            verdict = decide(seen, guard.state, guard.policy, clip)
        elif is_trial:
            ranks, spoiled, evidence = end_trial(guard, optimizer, trial)
            if ranks:
                bad = spoiled
                seen = replace(seen, step_is_finite=False, bad_ranks=ranks)
                verdict = decide(seen, guard.state, guard.policy, clip)
    if verdict.action is Action.STEP:
        window.snapshot.commit()
        guard.num_steps += 1
    else:
        snapshot, changes = window.snapshot, reading.changes
        kept: List[TensorBackup] = []
        if fails_again(seen, verdict.cause, guard.state):
            kept = find_empty_buffers(guard, snapshot, changes)
        snapshot.restore(changes, kept)
    guard.close()

    # Move the scale
    before, after = guard.scaler.move(verdict)
    guard.state = guard.state.after(
        seen, verdict, lr, guard.policy.proven_after
    )

    if not verdict.counts and len(window.losses) > 1:
        judge_micro_batches(guard, scale.is_unscaled)

    # Report
    if verdict.action is Action.STEP:
        norm = seen.grad_norm if seen.clip_norm is None else seen.clip_norm
        guard.last_clip_coef = verdict.clip_coef
        guard.clip_rule = guard.clip_rule.after(norm)
        guard.log_norm(norm)
        # Not <=, which is False for NaN.
        if guard.params.can_spoil or not lr <= LARGEST_LR:
            guard.params.note_step(params, guard.iter)
    if verdict.cause is not Cause.NONE:
        step = None
        if CAUSES[verdict.cause].is_of_step:
            step = (spoiler or guard.params).describe_step(bad_settings)
            step.update(evidence)
            if CAUSES[verdict.cause].was_committed:
                guard.params.check_steps()
        elif verdict.action is not Action.STEP:
            step = guard.params.describe_uphill()
        guard.report(seen, verdict, bad, before, after, step)
    elif verdict.scale_move is ScaleMove.RETURN:
        log_return(guard, before, after)


def log_return(guard: Guard, before: float, after: float) -> None:
    """Log that a commit has brought the loss scale back."""
    why = 'updates are clean again'
    if guard.state.scale_trial.num_trusted == 0:
        why = 'gradients fit it, and their NaN came from elsewhere'
    say(f'Iter {guard.iter}: loss scale {before:g} -> {after:g} again: {why}')


def is_checked(guard: Guard, norm: float) -> bool:
    """Whether the result of a step is checked; equal on all ranks.

    Args:
        guard: The guard of the optimizer.
        norm: The norm of the clipped gradients.
    """
    mode, params = guard.policy.check_step, guard.params
    if mode != 'start':
        return mode == 'always'
    return (
        guard.num_steps < NUM_CHECKED
        or params.has_spoiled
        or params.is_risky
        or norm > ABSURD_NORM
        # Only other optimizers than PyTorch's may divide by the norm.
        or (norm == 0 and params.can_spoil)
    )
