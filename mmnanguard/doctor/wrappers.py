"""The look at the optimizers: which are guarded, and by which rules."""

import inspect
from typing import Any, List, Mapping, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.optim import LBFGS, SGD

from mmnanguard.core.how_to_guard import has_guarded_form, how_to_guard
from mmnanguard.hooks import RollbackHook
from mmnanguard.hooks._shared.find_guards import guard_facts
from mmnanguard.optim import NanGuardDeepSpeedOptimWrapper
from mmnanguard.optim.apply_guard import BUILDER_KEYS
from mmnanguard.optim.guarded_wrapper import GuardedWrapper

from .classes import NamedClass, collected_logs, error_text
from .finding import Finding, fail, fine, warn

__all__ = ['GUARDED', 'is_guarded', 'look_at_frozen', 'look_at_wrappers']

GUARDED = (GuardedWrapper, NanGuardDeepSpeedOptimWrapper)
ADD_GUARD = 'Add --guard full, or fp32, bf16 or fp16.'
# Keys of a model that say which of its parameters are not trained.
FROZEN = ('frozen_stages', 'frozen', 'freeze', 'freeze_backbone')


def is_guarded(named: NamedClass) -> bool:
    """Whether a wrapper's class is guarded."""
    return isinstance(named.kind, type) and issubclass(named.kind, GUARDED)


def look_at_wrappers(
    cfg: Config,
    wrappers: List[NamedClass],
    optimizers: List[NamedClass],
    hooks: List[NamedClass],
) -> List[Finding]:
    """Return the findings on the optimizer wrappers of a config.

    Each guarded wrapper is built for one parameter, so that its own checks
    judge its keys.

    Args:
        cfg: The config, in its guarded form.
        wrappers: The classes of its wrappers.
        optimizers: The classes of its optimizers.
        hooks: The classes of its hooks.
    """
    if not wrappers:
        return [fail('The config has no optim_wrapper with an optimizer.')]
    can_roll_back = any(is_kind(hook, RollbackHook) for hook in hooks)
    findings = []
    for named, optimizer in zip(wrappers, optimizers):
        if named.reason:
            continue
        if is_kind(optimizer, LBFGS):
            findings.append(
                fail(
                    f'{optimizer.where} is LBFGS, which evaluates the loss '
                    'inside of its step and cannot be guarded.',
                    'Take an optimizer without a closure.',
                )
            )
        elif not is_guarded(named):
            findings.append(refuse(named))
        else:
            findings += look_at_guarded(named, optimizer.name, can_roll_back)
    return [*findings, *look_at_strategy(cfg, wrappers)]


def refuse(named: NamedClass) -> Finding:
    """Return the finding on a wrapper that is not guarded."""
    names = [named.name]
    if isinstance(named.kind, type):
        names = [kind.__name__ for kind in named.kind.__mro__]
    cure = how_to_guard(names)
    if has_guarded_form(named.name) and names[0].endswith('OptimWrapper'):
        cure = f'{ADD_GUARD} {cure}'
    return fail(f'{named.where}: {named.name} IS NOT GUARDED.', cure)


def look_at_guarded(
    named: NamedClass, optimizer: str, can_roll_back: bool
) -> List[Finding]:
    """Return the findings on a guarded wrapper."""
    with collected_logs() as records:
        wrapper, reason = build(named)
    findings = [warn(record.getMessage()) for record in records]
    if wrapper is None:
        if not reason.startswith(named.where):
            reason = f'{named.where}: {reason}'
        return [*findings, fail(reason)]
    facts = guard_facts(wrapper.guard)
    policy = facts['policy']
    counts = named.config.get('accumulative_counts', 1)
    words = [
        f'{named.where}: {named.name}, {optimizer}',
        *precision_of(named.config, wrapper),
        facts['clip'],
    ]
    if counts > 1:
        words.append(f'{counts} micro-batches per update')
    rolls_back = policy['when_exhausted'] == 'rollback'
    end = 'rolls back' if rolls_back else 'halts'
    words.append(
        f'{end} after {policy["max_consecutive_skips"]} skips in a row'
    )
    if policy['divergence']:
        words.append('or if the run diverges')
    findings.insert(0, fine(', '.join(words)))
    if rolls_back and not can_roll_back:
        findings.append(
            fail(
                f"{named.where}.guard.when_exhausted is 'rollback', and there "
                'is no RollbackHook.',
                'Add to the config or to --cfg-options:',
                'default_hooks.rollback.type=mmnanguard.RollbackHook',
            )
        )
    return findings


def build(named: NamedClass) -> Tuple[Optional[Any], str]:
    """Build a wrapper for one parameter; return it, or why that fails."""
    keys = dict(named.config)
    for key in (*BUILDER_KEYS, 'optimizer'):
        keys.pop(key, None)
    constructor = named.config.get('constructor')
    if constructor and constructor != DefaultOptimWrapperConstructor.__name__:
        # A constructor of the user's may take out keys that nobody else knows.
        known = inspect.signature(named.kind).parameters
        keys = {key: value for key, value in keys.items() if key in known}
    param = nn.Parameter(torch.zeros(1, device=get_device()))
    try:
        return named.kind(SGD([param], lr=0.1), **keys), ''
    except Exception as error:  # a user's subclass: whatever it raises
        return None, error_text(error)


def precision_of(config: Mapping[str, Any], wrapper: Any) -> List[str]:
    """Return the words on precision and loss scale."""
    dtype = getattr(wrapper, 'cast_dtype', None)
    if isinstance(wrapper, NanGuardDeepSpeedOptimWrapper):
        return ["the strategy's precision"]
    if dtype is None:
        return ['float32']
    if config.get('dtype') is None:
        # On a CPU, the type that training will have cannot be seen.
        words = 'float16 on a GPU, bfloat16 on a CPU'
    else:
        words = str(dtype).replace('torch.', '')
    scale = config.get('loss_scale', 'dynamic')
    if 'float16' in words.split():
        return [words, f'loss scale {scale}']
    return [words]


def look_at_strategy(cfg: Config, wrappers: List[NamedClass]) -> List[Finding]:
    """Return the findings on a strategy, and on how the model is wrapped."""
    findings = []
    strategy = cfg.get('strategy') or {}
    kind = str(strategy.get('type', '')).split('.')[-1]
    if kind == 'ColossalAIStrategy':
        findings.append(
            fail(f'strategy: {how_to_guard(["ColossalAIOptimWrapper"])}')
        )
    elif 'DeepSpeed' in kind:
        for named in wrappers:
            if is_guarded(named) and not is_kind(
                named, NanGuardDeepSpeedOptimWrapper
            ):
                findings.append(
                    fail(
                        f'{named.where}: {named.name} passes the engine of '
                        f'{kind} by.',
                        ADD_GUARD,
                    )
                )
    if kind and not findings:
        findings.append(fine(f'strategy: {kind}'))
    wrapped = (cfg.get('model_wrapper_cfg') or {}).get('type')
    if wrapped:
        findings.append(fine(f'model_wrapper_cfg: {wrapped}'))
    if 'FullySharded' in str(wrapped) or kind.startswith('FSDP'):
        findings += look_at_sharding(wrappers)
    return findings


def look_at_sharding(wrappers: List[NamedClass]) -> List[Finding]:
    """Return findings on rules that cannot work on shards."""
    findings = []
    for named in wrappers:
        clip = (named.config.get('clip_grad') or {}).get('type')
        rules = named.config.get('guard') or {}
        bad = ''
        if str(clip).endswith('AdaptiveGradClip'):
            bad = 'clip_grad.type=AdaptiveGradClip'
        if rules.get('accumulation') == 'microbatch':
            bad = "guard.accumulation='microbatch'"
        if bad:
            findings.append(
                fail(
                    f'{named.where}.{bad} is not possible with FSDP.',
                    'Leave it out (docs/en/limits.md).',
                )
            )
    return findings


def look_at_frozen(cfg: Config) -> List[Finding]:
    """Return the finding on what is not trained, and so not judged."""
    parts: List[str] = []
    collect_frozen(cfg.get('model'), 'model', parts)
    if not parts:
        return []
    shown = ', '.join(parts[:4]) + (', ...' if parts[4:] else '')
    return [fine(f'not trained, and so not judged: {shown}')]


def collect_frozen(node: Any, where: str, parts: List[str]) -> None:
    """Append each key of a model that freezes a part of it."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        name = f'{where}.{key}'
        is_on = value not in (None, False, -1)
        if key in FROZEN and isinstance(value, (bool, int)) and is_on:
            parts.append(f'{name}={value}')
        collect_frozen(value, name, parts)


def is_kind(named: NamedClass, kind: type) -> bool:
    """Whether a named class is a class or a subclass of it."""
    return isinstance(named.kind, type) and issubclass(named.kind, kind)
