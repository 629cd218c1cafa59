"""The changes of a guard to a config with MMEngine's DeepSpeedStrategy."""

import json
import logging
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple

from mmengine.config import Config, ConfigDict

from mmnanguard._console import say
from mmnanguard.core import GuardConfigError

__all__ = ['Changes', 'adapt_to_deepspeed', 'has_deepspeed']

WRAPPER = 'NanGuardDeepSpeedOptimWrapper'
# The precision that an overlay's wrapper stands for.
PRECISIONS = {'float16': 'fp16', 'bfloat16': 'bf16'}
# Hooks of an overlay that cannot work with an engine, and why.
LEFT_OUT = {
    'RollbackHook': 'it cannot put back the weights of an engine',
    'Fp32ModulesHook': 'the weights are in the precision of the strategy',
}
AUTO = 'auto'


class Changes(NamedTuple):
    """The changes that an overlay makes.

    Attributes:
        wrapper: The keys of the optimizer wrapper.
        hooks: The default hooks, by key.
    """

    wrapper: Dict[str, Any]
    hooks: Dict[str, Any]


def has_deepspeed(cfg: Config) -> bool:
    """Whether the run of a config is in the hands of DeepSpeed."""
    kinds = [name_of(cfg.get('strategy')), name_of(cfg.get('optim_wrapper'))]
    return any('DeepSpeed' in kind for kind in kinds)


def adapt_to_deepspeed(cfg: Config, changes: Changes) -> Changes:
    """Return the changes that fit DeepSpeed, and adapt the strategy.

    The strategy gets what DeepSpeed has to know: precision, accumulation,
    clipping and batch size, as xtuner's ``--deepspeed`` sets them.

    Args:
        cfg: The config; its strategy and its wrapper are changed.
        changes: The changes of the overlay.

    Raises:
        GuardConfigError: If the config has no strategy, or nothing says what
            its precision 'auto' is.
    """
    if not isinstance(cfg.get('strategy'), dict):
        raise GuardConfigError(
            'optim_wrapper.type is of DeepSpeed, and the config has no '
            "strategy: add strategy=dict(type='DeepSpeedStrategy', ...)."
        )
    settings = read_settings(cfg)
    precision = precision_of(changes.wrapper) or settle_auto(cfg, settings)
    set_precision(cfg, settings, precision)
    move_to_strategy(cfg, settings)
    log_strategy(cfg, settings)
    cfg.setdefault('runner_type', 'FlexibleRunner')
    # FlexibleRunner.from_cfg fails without it.
    cfg.setdefault('env_cfg', {})
    wrapper: Dict[str, Any] = {'type': WRAPPER}
    for key, value in changes.wrapper.items():
        if key not in ('type', 'dtype', 'loss_scale'):
            wrapper[key] = value
    rules = dict(wrapper.get('guard') or {})
    if rules.pop('when_exhausted', '') == 'rollback':
        wrapper['guard'] = rules
    hooks = {}
    for key, hook in changes.hooks.items():
        reason = LEFT_OUT.get(name_of(hook), '')
        if name_of(hook) == 'AutopsyHook' and stage_of(settings) == 3:
            reason = 'it cannot run a window again with ZeRO 3'
        if not reason:
            hooks[key] = hook
            continue
        say(
            f'default_hooks.{key} is left out with DeepSpeed: {reason}',
            logging.WARNING,
        )
    return Changes(wrapper, hooks)


def read_settings(cfg: Config) -> Dict[str, Any]:
    """Return DeepSpeed's settings, as the strategy will see them."""
    strategy = cfg.strategy
    settings = strategy.get('config') or {}
    if isinstance(settings, str):
        path = Path(settings)
        if not path.is_file():
            raise GuardConfigError(
                f'strategy.config is {settings!r}, which is no file.'
            )
        settings = json.loads(path.read_text(encoding='utf-8'))
    # Arguments of the strategy come before its file.
    return {**settings, **strategy}


def move_to_strategy(cfg: Config, settings: Mapping[str, Any]) -> None:
    """Give the strategy what MMEngine's wrapper and loader say."""
    wrapper, strategy = cfg.optim_wrapper, cfg.strategy
    clip = wrapper.get('clip_grad') or {}
    is_norm = 'max_norm' in clip and clip.get('norm_type', 2) == 2
    loader = cfg.get('train_dataloader') or {}
    values = {
        'gradient_accumulation_steps': wrapper.pop('accumulative_counts', 1),
        'gradient_clipping': clip['max_norm'] if is_norm else 0.0,
        'train_micro_batch_size_per_gpu': loader.get('batch_size'),
    }
    if is_norm and 'type' not in clip:
        # DeepSpeed clips by it; a clip of the guard's own kinds stays.
        del wrapper['clip_grad']
    # The strategy's fp16 and bf16 have the precision and the first scale.
    for key in ('dtype', 'loss_scale'):
        wrapper.pop(key, None)
    for key, value in values.items():
        if settings.get(key, AUTO) == AUTO and value is not None:
            strategy[key] = value


def log_strategy(cfg: Config, before: Mapping[str, Any]) -> None:
    """Log the settings that the strategy did not have before."""
    parts = []
    for key, value in cfg.strategy.items():
        if value != before.get(key):
            parts.append(f'{key}={value!r}')
    if parts:
        say(
            f'strategy gets {", ".join(parts)}, from the guard, optim_wrapper '
            'and train_dataloader'
        )


def settle_auto(cfg: Config, settings: Mapping[str, Any]) -> str:
    """Return the precision for a strategy with 'auto'; '' without one.

    DeepSpeed itself knows no 'auto'.
    """
    parts = [settings.get(key) or {} for key in ('fp16', 'bf16')]
    if all(part.get('enabled') != AUTO for part in parts):
        return ''
    wrapper = cfg.optim_wrapper
    if not name_of(wrapper).endswith('AmpOptimWrapper'):
        raise GuardConfigError(
            "the strategy's fp16.enabled or bf16.enabled is 'auto', and "
            'optim_wrapper has no dtype. Choose the precision: --guard fp32, '
            'bf16 or fp16, or set enabled to True or False.'
        )
    dtype = str(wrapper.get('dtype', '')).replace('torch.', '')
    return PRECISIONS.get(dtype, 'fp16')


def precision_of(wrapper: Mapping[str, Any]) -> str:
    """Return the precision of an overlay's wrapper; '' if it has none."""
    if 'type' not in wrapper:
        return ''
    return PRECISIONS.get(str(wrapper.get('dtype', '')), 'fp32')


def set_precision(
    cfg: Config, settings: Mapping[str, Any], precision: str
) -> None:
    """Let the strategy train in a precision; '' keeps what it has."""
    if not precision:
        return
    for key in ('fp16', 'bf16'):
        part = settings.get(key) or {}
        is_on = key == precision
        if part.get('enabled', False) is not is_on:
            cfg.strategy[key] = ConfigDict(part, enabled=is_on)


def stage_of(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage."""
    return int((settings.get('zero_optimization') or {}).get('stage', 0))


def name_of(cfg: Any) -> str:
    """Return the bare name of a config's type; '' without one."""
    type_ = cfg.get('type') if isinstance(cfg, dict) else None
    if isinstance(type_, type):
        return type_.__name__
    return str(type_ or '').split('.')[-1]
