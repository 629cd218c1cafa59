"""The run that a config of 2.x describes, by the rules of MMEngine.

MMEngine's Runner builds the loop and the schedulers, and the schedulers step
as in a training.
"""

import tempfile
import warnings
from functools import lru_cache
from typing import Any, List, Mapping, Optional, Tuple

import torch
from mmengine.runner import EpochBasedTrainLoop, Runner

from public_configs.facts import Facts, Loop, Unknown
from public_configs.run_1x import (
    BACKENDS,
    LOADER,
    PHASES,
    constructor,
    loop_of,
    warmup_of,
    without_empty,
)

AMP = 'mmnanguard.NanGuardAmpOptimWrapper'


def describe_2x(cfg: Mapping[str, Any], old: Mapping[str, Any]) -> Facts:
    """Return the facts of a run.

    Args:
        cfg: The config of 2.x.
        old: The config of 1.x, whose moments are those at which the rates
            are compared.
    """
    facts: Facts = {}
    facts.update(loop_and_rates(cfg, old))
    facts.update(wrapper(cfg.get('optim_wrapper') or {}, cfg))
    facts.update(hooks(cfg))
    facts.update(loaders(cfg))
    facts.update(environment(cfg))
    facts['model'] = cfg.get('model')
    if isinstance(facts['model'], dict):
        facts['model'] = without_empty(facts['model'])
    for key in cfg:
        facts[f'key {key}'] = cfg[key]
    return facts


def loop_and_rates(cfg: Mapping[str, Any], old: Mapping[str, Any]) -> Facts:
    """Return the facts that MMEngine's loop and schedulers give."""
    facts: Facts = {}
    train = cfg.get('train_cfg')
    if not train:
        return facts
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    base = optimizer.get('lr')
    if not isinstance(base, (int, float)):
        base = 1.0
    schedulers = cfg.get('param_scheduler') or []
    old_loop = loop_of(old)
    if old_loop is None:
        # A part of other configs: MMEngine cannot build it yet.
        unit = train.get('by_epoch', True)
        return {
            'validation': [unit, train.get('val_interval')],
            'validation begins': train.get('val_begin'),
            'dynamic intervals': train.get('dynamic_intervals'),
        }
    moments: List[int] = []
    epoch = 1
    if isinstance(old_loop, Loop):
        epoch = old_loop.epoch
        moments = old_loop.moments(warmup_of(old, old_loop))
    try:
        loop, interval, begin, rates = build(
            repr((dict(train), schedulers, base, moments, epoch))
        )
    except Exception as error:
        facts['length'] = Unknown(f'{type(error).__name__}: {error}')
        facts['rates'] = facts['validation'] = facts['length']
        return facts
    facts['length'] = loop
    facts['validation'] = [loop.by_epoch, interval]
    facts['validation begins'] = begin
    facts['dynamic intervals'] = train.get('dynamic_intervals')
    if not optimizer:
        facts['rates'] = Unknown('no optimizer')
    else:
        facts['rates'] = list(rates)
    return facts


@lru_cache(maxsize=None)
def build(text: str) -> Tuple[Loop, int, int, Tuple[float, ...]]:
    """Build a loop, step its schedulers, and return its facts.

    Args:
        text: The representation of a tuple: ``train_cfg``, schedulers,
            learning rate, the moments of the rates, iterations in an epoch.
    """
    train, schedulers, base, moments, epoch = eval(text)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The schedulers step without their optimizer.
        warnings.simplefilter('ignore')
        runner = Runner(
            model=torch.nn.Linear(1, 1),
            work_dir=folder,
            train_dataloader=dict(
                batch_size=1,
                dataset=range(epoch),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=train,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=base)),
            param_scheduler=schedulers,
            default_hooks=dict.fromkeys(DEFAULT_HOOKS),
            log_level='ERROR',
        )
        train_loop = runner.train_loop
        by_epoch = isinstance(train_loop, EpochBasedTrainLoop)
        length = train_loop.max_epochs if by_epoch else train_loop.max_iters
        loop = Loop(by_epoch, int(length))
        optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.optim_wrapper = optim_wrapper
        built = runner.build_param_scheduler(schedulers)
        group = optim_wrapper.param_groups[0]
        rates = dict.fromkeys(moments, group['lr'])
        # Without schedulers the rate stays.
        last = max(moments, default=-1) if built else -1
        for now in range(last + 1):
            rates[now] = group['lr']
            # As MMEngine's ParamSchedulerHook does it.
            is_end_of_epoch = by_epoch and (now + 1) % epoch == 0
            for scheduler in built:
                if is_end_of_epoch or not scheduler.by_epoch:
                    scheduler.step()
    return (
        loop,
        train_loop.val_interval,
        train_loop.val_begin,
        tuple(rates[now] for now in moments),
    )


DEFAULT_HOOKS = (
    'runtime_info',
    'timer',
    'sampler_seed',
    'logger',
    'param_scheduler',
    'checkpoint',
)


def wrapper(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of ``optim_wrapper``."""
    kind = str(config.get('type'))
    hooks = cfg.get('default_hooks') or {}
    half: Any = None
    if kind == AMP:
        half = config.get('loss_scale', 'dynamic')
        if config.get('dtype', 'float16') != 'float16':
            half = Unknown(config['dtype'])
    return {
        'optimizer': config.get('optimizer'),
        'paramwise': config.get('paramwise_cfg'),
        'constructor': constructor(config.get('constructor')),
        'clip': config.get('clip_grad'),
        'accumulation': config.get('accumulative_counts', 1),
        'loss scale': half,
        'guard': 'NanGuard' in kind and bool(hooks.get('nan_guard')),
    }


def hooks(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of the hooks."""
    config = cfg.get('default_hooks') or {}
    checkpoint = config.get('checkpoint', {})
    facts: Facts = dict(checkpoint=None)
    if checkpoint is not None:
        interval = checkpoint.get('interval', -1)
        unit = checkpoint.get('by_epoch', True) if interval > 0 else None
        kept = checkpoint.get('max_keep_ckpts', -1)
        facts['checkpoint'] = [unit, interval, kept]
        for key in ('save_best', 'rule', 'greater_keys', 'less_keys'):
            facts[key] = checkpoint.get(key)
    facts['log interval'] = (config.get('logger') or {}).get('interval', 10)
    processor = cfg.get('log_processor') or {}
    facts['log by_epoch'] = processor.get('by_epoch', True)
    backends = str((cfg.get('visualizer') or {}).get('vis_backends', ''))
    facts['log services'] = sorted(
        name for name in BACKENDS if name.lower() in backends.lower()
    )
    facts['custom_hooks'] = list(cfg.get('custom_hooks') or [])
    return facts


def loaders(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of the data loaders."""
    facts: Facts = {}
    for phase in PHASES:
        loader: Optional[Mapping[str, Any]] = cfg.get(f'{phase}_dataloader')
        if loader:
            facts[f'{phase} batch'] = loader.get('batch_size')
            facts[f'{phase} workers'] = loader.get('num_workers')
            facts[f'{phase} dataset'] = loader.get('dataset')
            sampler = loader.get('sampler') or {}
            for key in LOADER:
                facts[f'{phase} {key}'] = loader.get(key)
            facts[f'{phase} shuffle'] = sampler.get('shuffle')
    return facts


def environment(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of the keys that only move."""
    env = cfg.get('env_cfg') or {}
    processes = env.get('mp_cfg') or {}
    randomness = cfg.get('randomness') or {}
    return {
        'cudnn_benchmark': env.get('cudnn_benchmark'),
        'mp_start_method': processes.get('mp_start_method'),
        'opencv_num_threads': processes.get('opencv_num_threads'),
        'dist_params': env.get('dist_cfg'),
        'seed': randomness.get('seed'),
        'deterministic': randomness.get('deterministic'),
        'load_from': cfg.get('load_from'),
    }
