"""One of two ranks that train under FlexibleRunner and DeepSpeed."""

import json
import sys
from pathlib import Path

import deepspeed_engine as engines
import torch
from deepspeed_runs import everything, make_runner, strike
from torch import distributed as dist

from mmnanguard.core import GuardConfigError

KINDS = [
    engines.Kind(0, 'fp32', 'adamw', 1),
    engines.Kind(1, 'bf16', 'adamw', 2),
    engines.Kind(2, 'fp16', 'sgd', 1, 0.5),
    engines.Kind(2, 'fp16', 'adamw', 2, 0.5, True),
    engines.Kind(3, 'bf16', 'adamw', 2),
]
CHECKPOINT = dict(type='CheckpointHook', by_epoch=False, interval=4)


def with_hooks(work_dir):
    """Train with all hooks beside the run without the struck windows."""
    seen = []
    for number, kind in enumerate(KINDS):
        hooks = dict(
            audit=dict(type='mmnanguard.StateAuditHook', interval=3),
            inputs=dict(type='mmnanguard.InputGuardHook'),
            dump=dict(type='mmnanguard.BatchDumpHook', save_weights='auto'),
            checkpoint=CHECKPOINT,
        )
        if kind.stage < 3:
            hooks['autopsy'] = dict(type='mmnanguard.AutopsyHook')
        length = kind.accumulation
        struck = [4, 8] if length == 2 else [3, 6]
        faults = strike(struck[0], 'activation') + strike(struck[1], 'input')
        guarded = make_runner(
            work_dir / f'guarded_{number}', kind, 12, faults, hooks=hooks
        )
        guarded.train()
        left_out = []
        for last in struck:
            left_out += range(last - length + 1, last + 1)
        plain = make_runner(
            work_dir / f'plain_{number}',
            kind,
            12,
            is_guarded=False,
            leave_out=left_out,
        )
        plain.train()
        seen.append(
            dict(
                kind=kind,
                differing=engines.differing(
                    everything(guarded), everything(plain)
                ),
                work_dir=str(guarded.work_dir),
                skipped=guarded.model.model.skipped_steps,
            )
        )
    return seen


def refused(work_dir):
    """Return the errors of hooks that cannot work with an engine."""
    errors = {}
    for name, stage in (('RollbackHook', 1), ('AutopsyHook', 3)):
        kind = engines.Kind(stage, 'fp32', 'sgd', 1)
        hook = dict(refused=dict(type=f'mmnanguard.{name}'))
        try:
            make_runner(work_dir / name, kind, 2, hooks=hook).train()
        except GuardConfigError as error:
            errors[name] = str(error)
    for name in ('NanGuardOptimWrapper', 'NanGuardAmpOptimWrapper'):
        kind = engines.Kind(1, 'fp32', 'sgd', 1)
        wrapper = dict(
            type=f'mmnanguard.{name}', optimizer=dict(type='SGD', lr=0.1)
        )
        try:
            make_runner(
                work_dir / name, kind, 2, optim_wrapper=wrapper
            ).train()
        except GuardConfigError as error:
            errors[name] = str(error)
    return errors


def resume(work_dir, part, stage, precision):
    """Train as a whole, up to a kill, or from the checkpoint before it."""
    kind = engines.Kind(int(stage), precision, 'adamw', 1)
    hooks = dict(checkpoint=CHECKPOINT)
    folder = work_dir / ('whole' if part == 'whole' else 'parts')
    if part == 'killed':
        hooks['kill'] = dict(type='KillHook', iter=7)
    runner = make_runner(
        folder,
        kind,
        12,
        strike(2) + strike(10),
        hooks=hooks,
        resume=part == 'resumed',
    )
    runner.train()
    path = work_dir / f'{part}_{dist.get_rank()}.pt'
    guard = runner.optim_wrapper.guard
    facts = dict(
        state=guard.state.to_dict(),
        scale=guard.scaler.get_scale(),
        run=guard.run,
        attempt=guard.attempt,
        skipped=runner.model.model.skipped_steps,
    )
    torch.save(dict(kept=everything(runner), facts=facts), path)


def main(work_dir, what, *args):
    engines.start()
    work_dir = Path(work_dir)
    if what == 'resume':
        resume(work_dir, *args)
    else:
        seen = dict(runs=with_hooks(work_dir), refused=refused(work_dir))
        path = work_dir / f'rank_{dist.get_rank()}.json'
        path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
