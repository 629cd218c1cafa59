"""One of two ranks that train under rarer settings of DeepSpeed."""

import functools
import json
import sys
from pathlib import Path

import deepspeed_engine as engines
import deepspeed_kernels as kernels
import torch
from torch import distributed as dist

STRUCK = 4
VARIED = [
    engines.Kind(1, 'bf16', 'adamw', 2, 0.0, False, 'float32 accumulation'),
    engines.Kind(2, 'bf16', 'adamw', 2, 0.0, False, 'float32 accumulation'),
    engines.Kind(2, 'bf16', 'adamw', 2, 0.0, True, 'float32 accumulation'),
    engines.Kind(2, 'fp16', 'adamw', 2, 0.1, False, 'round robin'),
    engines.Kind(2, 'bf16', 'sgd', 2, 0.0, False, 'overlap'),
    engines.Kind(1, 'fp16', 'adamw', 1, 0.0, False, 'scattered'),
    engines.Kind(2, 'fp32', 'adamw', 1, 0.0, True, 'no scatter'),
    engines.Kind(0, 'fp32', 'adamw', 1, 0.1, False, 'groups'),
    engines.Kind(2, 'bf16', 'adamw', 1, 0.0, False, 'groups'),
    engines.Kind(3, 'bf16', 'adamw', 1, 0.0, True, 'groups'),
    engines.Kind(3, 'bf16', 'adamw', 2, 0.0, False, 'sub-groups'),
    engines.Kind(0, 'fp16', 'adamw', 1, 0.0, False, 'forward'),
    engines.Kind(1, 'bf16', 'adamw', 2, 0.0, False, 'forward'),
    engines.Kind(3, 'bf16', 'adamw', 2, 0.0, False, 'forward'),
    engines.Kind(1, 'bf16', 'adamw', 1, 0.0, False, 'unused'),
]
GROWING = [
    engines.Kind(0, 'fp16', 'sgd', 1, 0.0, False, 'growth'),
    engines.Kind(1, 'fp16', 'sgd', 2, 0.1, False, 'growth'),
    engines.Kind(3, 'fp16', 'sgd', 1, 0.0, False, 'growth'),
]
UNSCALED = engines.Kind(0, 'fp16', 'sgd', 3, 0.0, False, 'static')
# The optimizers of DeepSpeed itself.
OWN = [
    engines.Kind(0, 'fp32', 'FusedAdam', 1),
    engines.Kind(0, 'fp16', 'FusedAdam', 2, 0.1),
    engines.Kind(0, 'bf16', 'FusedAdam', 1),
    engines.Kind(1, 'bf16', 'FusedAdam', 2),
    engines.Kind(3, 'fp16', 'FusedAdam', 1),
    engines.Kind(1, 'fp16', 'DeepSpeedCPUAdam', 1, 0.1, True),
    engines.Kind(2, 'bf16', 'DeepSpeedCPUAdam', 2, 0.0, True),
    engines.Kind(3, 'fp16', 'DeepSpeedCPUAdam', 1, 0.1, True),
    engines.Kind(0, 'fp16', 'FusedLion', 1),
    engines.Kind(2, 'bf16', 'FusedLion', 1),
    engines.Kind(0, 'fp16', 'FusedLamb', 1),
    engines.Kind(1, 'bf16', 'FusedLamb', 2),
]
STEPPED = [
    engines.Kind(0, 'fp32', 'sgd', 1),
    engines.Kind(0, 'bf16', 'sgd', 1),
    engines.Kind(1, 'bf16', 'sgd', 2),
    engines.Kind(2, 'fp16', 'sgd', 1, 0.1, True),
    engines.Kind(3, 'bf16', 'sgd', 1),
    engines.Kind(0, 'fp16', 'FusedAdam', 1),
    engines.Kind(2, 'bf16', 'FusedAdam', 1),
]
REFUSED = [
    engines.Kind(1, 'fp16', 'sgd', 1),
    engines.Kind(2, 'fp16', 'sgd', 2),
    engines.Kind(3, 'fp16', 'sgd', 1),
]


def spoil(wrapper, is_struck):
    """Let the optimizer make NaN of finite gradients on one rank."""
    if hasattr(wrapper, 'hook'):
        wrapper.hook.remove()
    inner = getattr(wrapper.optimizer, 'optimizer', wrapper.optimizer)
    if is_struck and dist.get_rank() == 1:
        wrapper.hook = inner.register_step_post_hook(spoil_all)


def spoil_all(optimizer, *_):
    for group in optimizer.param_groups:
        for param in group['params']:
            param.data.view(-1)[0] = float('nan')
            for value in optimizer.state[param].values():
                if isinstance(value, torch.Tensor) and value.dim():
                    value.view(-1)[1] = float('inf')


def refuse(wrapper, is_struck):
    """Let DeepSpeed find an overflow where there is none."""
    vars(wrapper.optimizer).pop('has_overflow', None)
    if is_struck:
        wrapper.optimizer.has_overflow = lambda *_, **__: True


def train(kind, strike, leave_out=()):
    """Train with one struck window, or without it and the guard."""
    is_guarded = not leave_out
    policy = dict(check_step='always') if is_guarded else {}
    wrapper = engines.build(kind, is_guarded, **policy)
    if is_guarded:
        wrapper.guard.attach(object())
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    for window in range(1, 7):
        for _ in range(kind.accumulation):
            inputs = torch.randn(4, 4, generator=generator)
            if window in leave_out:
                continue
            strike(wrapper, is_guarded and window == STRUCK)
            engines.train_step(kind, wrapper, inputs)
    return wrapper


def see_struck(kind, strike):
    wrapper = train(kind, strike)
    due = engines.everything(train(kind, strike, leave_out=(STRUCK,)))
    return dict(
        kind=kind,
        differing=engines.differing(engines.everything(wrapper), due),
        told=[[e.iter, e.cause.value] for e in wrapper.guard.take_events()],
        skipped=wrapper.model.model.skipped_steps,
    )


def see_varied(kind, faults=(None, *engines.FAULTS[:3])):
    wrongs = []
    for fault in faults:
        wrapper, events = engines.run(kind, fault)
        left_out = () if fault is None else engines.STRUCK
        due = engines.oracle(kind, left_out)
        wrong = engines.differing(engines.everything(wrapper), due)
        if wrong or len(events) != len(left_out):
            wrongs.append([fault, wrong, len(events)])
    name = type(wrapper.optimizer).__name__
    return dict(
        kind=kind,
        wrongs=wrongs,
        optimizer=name,
        scale=engines.scale_of(wrapper),
    )


def scales_losses(kind):
    """Whether DeepSpeed scales losses."""
    wrapper, grads = engines.build(kind, False), []
    logits = wrapper.model.model(torch.randn(4, 4).half())
    loss = logits.square().mean()
    loss.register_hook(grads.append)
    wrapper.backward(loss)
    return float(grads[0]) > 1.0


def main(work_dir):
    engines.start()
    for name in kernels.NAMES:
        optimizer = functools.partial(kernels.find(name), lr=0.01)
        engines.OPTIMIZERS[name] = optimizer
    seen = dict(
        varied=[see_varied(kind) for kind in VARIED],
        grown=[see_varied(kind, [None]) for kind in GROWING],
        unscaled=see_varied(UNSCALED, [None, engines.FAULTS[3]]),
        is_scaled=scales_losses(UNSCALED),
        own=[
            see_varied(kind) for kind in OWN if kind.optimizer in kernels.NAMES
        ],
        stepped=[see_struck(kind, spoil) for kind in STEPPED],
        refused=[see_struck(kind, refuse) for kind in REFUSED],
    )
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
