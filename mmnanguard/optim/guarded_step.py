"""The end of a window: observe, agree, decide, apply or restore, report."""

from typing import Any, List, Tuple

from mmengine.logging import print_log
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.core import Action, BadTensor, Cause, ScaleMove, decide
from mmnanguard.numerics.update.agree import agree
from mmnanguard.numerics.update.apply import apply_update, scaled_lr
from mmnanguard.numerics.update.blame import blame
from mmnanguard.numerics.update.observe import diagnose, find_suspects, observe

from .guard import Guard
from .resolve_clip_names import resolve_clip_names

__all__ = ['guarded_step']


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
    )
    seen = agree(local, norm_type)
    weights: List[Tensor] = []
    if not seen.is_clean:
        reading, weights = find_suspects(
            local, reading, window.snapshot, guard.weights()
        )
        local = diagnose(local, reading, grads, weights)
        seen = agree(local, norm_type)
    seen = window.complete(seen)

    # Decide
    clip = guard.clip_rule.coefficient
    verdict = decide(seen, guard.state, guard.policy, clip)

    # Apply, or restore
    bad: Tuple[BadTensor, ...] = ()
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
    if verdict.action is Action.STEP:
        with guard.coverage_warnings.stepping(seen, guard.models), scaled_lr(
            optimizer, verdict.lr_factor
        ):
            apply_update(
                optimizer,
                params,
                grads,
                scale.carried,
                verdict.clip_coef,
                guard.grad_rule,
                **step_kwargs,
            )
        window.snapshot.commit()
    else:
        window.snapshot.restore(reading.changes)
    guard.close()

    # Move the scale
    before, after = guard.scaler.move(verdict)
    lr = guard.params.highest_lr()
    guard.state = guard.state.after(
        seen, verdict, lr, guard.policy.proven_after
    )

    # Report
    if verdict.action is Action.STEP:
        norm = seen.grad_norm if seen.clip_norm is None else seen.clip_norm
        guard.last_clip_coef = verdict.clip_coef
        guard.clip_rule = guard.clip_rule.after(norm)
        guard.log_norm(norm)
    if verdict.cause is not Cause.NONE:
        guard.report(seen, verdict, bad, before, after)
    elif verdict.scale_move is ScaleMove.RETURN:
        log_return(guard, before, after)


def log_return(guard: Guard, before: float, after: float) -> None:
    """Log that a commit has brought the loss scale back."""
    why = 'updates are clean again'
    if guard.state.scale_trial.num_trusted == 0:
        why = 'gradients fit it, and their NaN came from elsewhere'
    print_log(
        f'Iter {guard.iter}: loss scale {before:g} -> {after:g} again: {why}',
        logger='current',
    )
