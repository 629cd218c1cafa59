"""The run that a config of 1.x describes, by the rules of mmcv 1.7.2.

Nothing here uses ``mmnanguard.migrate``, and nothing needs mmcv 1.7.2. Where
the tools of the projects (``tools/train.py``, ``apis/train.py``) decide and
not mmcv, the rules are those of mmdet 2.28.
"""

from typing import Any, Dict, Mapping, Optional

from rates_1x import rate

from public_configs.facts import AnyOf, Facts, Loop, Unknown

PHASES = ('train', 'val', 'test')
# Names for the batch size, in the projects' order of appearance.
BATCH = ('samples_per_gpu', 'imgs_per_gpu', 'videos_per_gpu', 'batch_size')
WORKERS = ('workers_per_gpu', 'num_workers')
# Options of a loader that have the same name in 2.x.
LOADER = ('shuffle', 'drop_last', 'pin_memory', 'persistent_workers')
# Keys that mmcv and the projects' tools read; all others are the model and
# variables, which have to stay.
KEYS = frozenset(
    """
    optimizer optimizer_config fp16 lr_config momentum_config runner
    total_epochs total_iters evaluation data checkpoint_config log_config
    resume_from auto_resume load_from workflow gpu_ids gpus device dist_params
    cudnn_benchmark opencv_num_threads mp_start_method seed deterministic
    custom_hooks train_cfg test_cfg model
    """.split()  # noqa: SIM905
)
HALF = ('Fp16OptimizerHook', 'GradientCumulativeFp16OptimizerHook')
PLAIN = (
    'OptimizerHook',
    'DistOptimizerHook',
    'GradientCumulativeOptimizerHook',
    *HALF,
)
BACKENDS = ('Tensorboard', 'Wandb', 'Mlflow', 'ClearML', 'Neptune', 'Dvclive')
MODEL_KEYS = ('train_cfg', 'test_cfg')
# Keys of a loop of MMEngine; train_cfg of 1.x has the model's.
LOOP_KEYS = frozenset(['type', 'by_epoch', 'max_epochs', 'max_iters'])


def describe_1x(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of a run; a fact that a config does not set is left
    out.
    """
    facts: Facts = {}
    loop = loop_of(cfg)
    by_epoch = loop.by_epoch if isinstance(loop, Loop) else counts_epochs(cfg)
    if loop is not None:
        facts['length'] = loop
    if cfg.get('lr_config') is not None and cfg.get('optimizer'):
        facts['rates'] = rates(cfg, loop)
    if cfg.get('momentum_config') is not None:
        facts['momenta'] = Unknown('not followed')
    facts.update(optimizer(cfg))
    if 'evaluation' in cfg and cfg['evaluation'] is not None:
        facts.update(evaluation(cfg['evaluation'], by_epoch))
    if 'checkpoint_config' in cfg:
        facts['checkpoint'] = checkpoint(cfg['checkpoint_config'], by_epoch)
    if cfg.get('log_config'):
        facts.update(log(cfg['log_config'], by_epoch))
    facts.update(loaders(cfg.get('data') or {}))
    facts.update(environment(cfg))
    facts['model'] = model(cfg)
    facts['custom_hooks'] = list(cfg.get('custom_hooks') or [])
    for key in cfg:
        if key not in KEYS:
            facts[f'key {key}'] = cfg[key]
    return facts


def counts_epochs(cfg: Mapping[str, Any]) -> bool:
    """Whether the runner counts epochs."""
    runner = cfg.get('runner') or {}
    return 'Iter' not in str(runner.get('type')) and 'total_iters' not in cfg


def loop_of(cfg: Mapping[str, Any]) -> Any:
    """Return the loop; None if no key gives it."""
    runner = cfg.get('runner')
    by_epoch = counts_epochs(cfg)
    total = cfg.get('total_epochs' if by_epoch else 'total_iters')
    if runner is None and total is None:
        return None
    length = (runner or {}).get('max_epochs' if by_epoch else 'max_iters')
    if None not in (length, total) and length != total:
        return Unknown('1.x refuses a runner that contradicts total_epochs')
    length = total if length is None else length
    if not isinstance(length, int):
        return None if length is None else Unknown(f'length {length!r}')
    kind = (runner or {}).get('type', 'EpochBasedRunner')
    if kind not in ('EpochBasedRunner', 'IterBasedRunner'):
        return Unknown(f'{kind} is of a project')
    return Loop(by_epoch, length)


def rates(cfg: Mapping[str, Any], loop: Any) -> Any:
    """Return the learning rates at the moments of the loop."""
    if not isinstance(loop, Loop):
        return Unknown('no length')
    if 'type' not in cfg['optimizer']:
        return Unknown('several optimizers')
    # Without lr the optimizer has a default: the rates are shares of it.
    base = cfg['optimizer'].get('lr', 1.0)
    unit = 'max_epochs' if loop.by_epoch else 'max_iters'
    config = cfg['lr_config']
    try:
        return [
            rate(
                {'runner': {unit: loop.length}}, config, now, base, loop.epoch
            )
            for now in loop.moments(warmup_of(cfg, loop))
        ]
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        return Unknown(f'lr_config: {type(error).__name__} {error}')


def warmup_of(cfg: Mapping[str, Any], loop: Loop) -> int:
    """Return the number of iterations of the warm-up."""
    config = cfg.get('lr_config') or {}
    if not config.get('warmup'):
        return 0
    length = int(config.get('warmup_iters', 0))
    return length * loop.epoch if config.get('warmup_by_epoch') else length


def optimizer(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of ``optimizer``, ``optimizer_config`` and ``fp16``."""
    config = cfg.get('optimizer_config') or {}
    facts: Facts = {}
    rest = dict(cfg.get('optimizer') or {})
    if rest:
        if 'type' not in rest:
            facts['optimizer'] = Unknown('several optimizers')
            return facts
        old = rest.pop('paramwise_options', None)
        facts['paramwise'] = rest.pop('paramwise_cfg', None) or old
        facts['constructor'] = constructor(rest.pop('constructor', None))
        facts['optimizer'] = rest
        # A length means that mmcv's runner trains, and no code of a project.
        if loop_of(cfg) is not None:
            facts['guard'] = True
    kind = config.get('type', 'OptimizerHook')
    if kind not in PLAIN:
        facts['optimizer hook'] = Unknown(f'{kind} is of a project')
        return facts
    if not (rest or config):
        return facts
    facts['clip'] = config.get('grad_clip')
    if rest or 'cumulative_iters' in config or 'update_interval' in config:
        facts['accumulation'] = config.get(
            'cumulative_iters', config.get('update_interval', 1)
        )
    facts['loss scale'] = loss_scale(cfg, config, kind)
    return facts


def constructor(name: Optional[str]) -> Optional[str]:
    """Return the name of a constructor; None for the default."""
    return None if name == 'DefaultOptimizerConstructor' else name


def loss_scale(
    cfg: Mapping[str, Any], config: Mapping[str, Any], kind: str
) -> Any:
    """Return the loss scale of float16; None in float32."""
    half = cfg.get('fp16')
    if half is None and kind not in HALF and not config.get('use_fp16'):
        return None
    scale = {**config, **(half or {})}.get('loss_scale', 512.0)
    return scale if isinstance(scale, (str, dict)) else float(scale)


def evaluation(config: Mapping[str, Any], by_epoch: bool) -> Facts:
    """Return when a run validates, and which checkpoint is the best."""
    facts: Facts = {}
    unit = config.get('by_epoch', by_epoch)
    facts['validation'] = [unit, config.get('interval', 1)]
    if isinstance(config.get('interval'), dict):
        facts['validation'] = Unknown('a dict of intervals')
    if config.get('start'):
        facts['validation begins'] = config['start']
    if config.get('dynamic_intervals'):
        facts['dynamic intervals'] = config['dynamic_intervals']
    for key in ('save_best', 'rule', 'greater_keys', 'less_keys'):
        if config.get(key) is not None:
            facts[key] = config[key]
    return facts


def checkpoint(config: Optional[Mapping[str, Any]], by_epoch: bool) -> Any:
    """Return the unit, the interval and the number of kept checkpoints."""
    if config is None:
        return None
    interval = config.get('interval', -1)
    unit = config.get('by_epoch', by_epoch) if interval > 0 else None
    return [unit, interval, config.get('max_keep_ckpts', -1)]


def log(config: Mapping[str, Any], by_epoch: bool) -> Facts:
    """Return the interval, the unit and the services of the log."""
    names, unit = [], by_epoch
    for hook in config.get('hooks') or []:
        name = str(hook.get('type'))
        names += [word for word in BACKENDS if word.lower() in name.lower()]
        if 'Text' in name:
            unit = hook.get('by_epoch', by_epoch)
    return {
        'log interval': config.get('interval', 10),
        'log by_epoch': unit,
        'log services': sorted({*names}),
    }


def first(config: Mapping[str, Any], names: Any) -> Any:
    """Return the value of the first of several names; None without any."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return None


def loaders(data: Mapping[str, Any]) -> Facts:
    """Return the facts of the data loaders."""
    facts: Facts = {}
    options = {*BATCH, *WORKERS, *LOADER}
    read = {*options, *PHASES}
    for phase in PHASES:
        read.add(f'{phase}_dataloader')
        special = dict(data.get(f'{phase}_dataloader') or {})
        # mmediting has val_samples_per_gpu, train_drop_last and so on.
        for key in data:
            option = key[len(phase) + 1 :]
            if key == f'{phase}_{option}' and option in options:
                special[option] = data[key]
                read.add(key)
        dataset = data.get(phase)
        if dataset is None and (phase != 'train' or not data):
            continue
        batch = first(special, BATCH)
        if phase != 'train' and isinstance(dataset, dict):
            dataset = dict(dataset)
            batch = batch or first(dataset, BATCH)
            dataset.pop('samples_per_gpu', None)
            facts[f'{phase} batch'] = batch or AnyOf((1, first(data, BATCH)))
        elif batch or first(data, BATCH):
            facts[f'{phase} batch'] = batch or first(data, BATCH)
        for key in LOADER:
            # The tools of 1.x evaluate in order, and every sample.
            is_ordered = phase != 'train' and key in ('shuffle', 'drop_last')
            if key in {**data, **special} and not is_ordered:
                facts[f'{phase} {key}'] = {**data, **special}[key]
        workers = first(special, WORKERS)
        if workers is None:
            workers = first(data, WORKERS)
        if workers is not None:
            facts[f'{phase} workers'] = workers
        if isinstance(dataset, (list, tuple)):
            dataset = dict(type='ConcatDataset', datasets=list(dataset))
        if dataset is not None:
            facts[f'{phase} dataset'] = dataset
    for key in sorted({*data} - read):
        facts[f'data.{key}'] = Unknown('no key of mmcv')
    return facts


def environment(cfg: Mapping[str, Any]) -> Facts:
    """Return the facts of the keys that only move."""
    facts: Facts = {}
    for key in ('cudnn_benchmark', 'mp_start_method', 'opencv_num_threads'):
        if key in cfg:
            facts[key] = cfg[key]
    for key in ('seed', 'deterministic'):
        if cfg.get(key) is not None:
            facts[key] = cfg[key]
    if cfg.get('dist_params'):
        facts['dist_params'] = cfg['dist_params']
    if cfg.get('resume_from'):
        facts['load_from'] = cfg['resume_from']
    elif cfg.get('load_from'):
        facts['load_from'] = cfg['load_from']
    if len(cfg.get('workflow') or ()) > 1:
        facts['workflow'] = Unknown('validates losses')
    return facts


def model(cfg: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """Return the model, with its own ``train_cfg`` and ``test_cfg``.

    mmdet's builder and that of others take them from the top level, too.
    """
    config = cfg.get('model')
    if not isinstance(config, dict):
        return config
    merged = dict(config)
    for key in MODEL_KEYS:
        value = cfg.get(key)
        is_loop = isinstance(value, dict) and {*value} & LOOP_KEYS
        if value and not is_loop and not merged.get(key):
            merged[key] = value
    return without_empty(merged)


def without_empty(config: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a model without an empty ``train_cfg`` or ``test_cfg``."""
    return {
        key: value
        for key, value in config.items()
        if value or key not in MODEL_KEYS
    }
