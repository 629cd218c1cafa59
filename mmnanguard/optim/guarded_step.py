from typing import Any, Tuple

from torch.optim import Optimizer

from mmnanguard.core import Action, BadTensor, Cause, decide
from mmnanguard.numerics.update.agree import agree
from mmnanguard.numerics.update.apply import apply_update, scaled_lr
from mmnanguard.numerics.update.blame import blame
from mmnanguard.numerics.update.observe import diagnose, observe

from .guard import Guard
from .resolve_clip_names import resolve_clip_names

__all__ = ['guarded_step']


def guarded_step(
    guard: Guard, optimizer: Optimizer, **step_kwargs: Any
) -> None:
    """End a transaction: the update is committed, or leaves no trace.

    The window was opened by ``optim_context`` and ran forward and backward;
    now the gradients are there, still scaled and not clipped.

    Syncs the device once; a rejected update costs a few syncs more. With
    several ranks it is collective, and all reach the same verdict.

    Raises:
        GuardConfigError: For what cannot be guarded (a closure, parameters
            in half precision).
        TrainingHalted: If the policy is exhausted or weights are bad, and no
            hook is attached that will raise it later.
    """
    guard.accumulation.end()
    params, grads = guard.collect(optimizer, **step_kwargs)
    resolve_clip_names(guard, params)
    scale = guard.scaler.read(optimizer)
    norm_type = guard.clip_rule.norm_type

    # Observe, and agree with the other ranks
    local, reading = observe(
        grads,
        guard.losses,
        guard.facts,
        guard.undo.snapshot,
        scale,
        norm_type,
        guard.place(params),
    )
    seen = agree(local, norm_type)
    if not seen.is_clean:
        local = diagnose(local, reading, grads, guard.weights())
        seen = agree(local, norm_type)
    seen = guard.accumulation.complete(seen)

    # Decide
    clip = guard.clip_rule.coefficient
    verdict = decide(seen, guard.state, guard.policy, clip)

    # Apply, or put back
    bad: Tuple[BadTensor, ...] = ()
    if verdict.cause is not Cause.NONE:
        bad = blame(
            verdict.cause,
            params,
            grads,
            guard.weights(),
            reading,
            scale.carried,
            guard.names(),
        )
    if verdict.action is Action.STEP:
        with guard.coverage_warnings.stepping(), scaled_lr(
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
    else:
        guard.undo.put_back()
    guard.close()

    # Move the scale
    before, after = guard.scaler.move(verdict)
    guard.state = guard.state.after(seen, verdict)

    # Tell
    if verdict.action is Action.STEP:
        norm = seen.grad_norm if seen.clip_norm is None else seen.clip_norm
        guard.last_clip_coef = verdict.clip_coef
        guard.clip_rule = guard.clip_rule.after(norm)
        guard.log_norm(norm)
    if verdict.cause is not Cause.NONE:
        guard.tell(seen, verdict, bad, before, after)
