"""Migration of ``runner``, ``evaluation``, ``data`` and ``resume_from``."""

from textwrap import shorten
from typing import Collection, Dict, Mapping, Tuple

from .config_value import ConfigDict, ConfigValue
from .migration import Migration

__all__ = ['migrate_data', 'migrate_loops', 'migrate_resume']

# The runners of mmcv, and those that projects had for apex; whether they count
# epochs.
RUNNERS = {
    'EpochBasedRunner': True,
    'IterBasedRunner': False,
    'EpochBasedRunnerAmp': True,
    'IterBasedRunnerAmp': False,
}
# Options of EvalHook itself; all others went to the dataset's evaluate().
BEST = ('save_best', 'rule', 'greater_keys', 'less_keys')
WHEN = ('interval', 'start', 'by_epoch', 'dynamic_intervals')
# Options of a data loader: in mmcv, and in MMEngine.
LOADER = {
    'samples_per_gpu': 'batch_size',
    'workers_per_gpu': 'num_workers',
    'imgs_per_gpu': 'batch_size',
    'videos_per_gpu': 'batch_size',
    'batch_size': 'batch_size',
    'num_workers': 'num_workers',
    'persistent_workers': 'persistent_workers',
    'pin_memory': 'pin_memory',
    'prefetch_factor': 'prefetch_factor',
    'drop_last': 'drop_last',
    'timeout': 'timeout',
}
# The option of mmcv for the batch size.
BATCH = 'samples_per_gpu'
# Options that the loaders of evaluation have as data.val_workers_per_gpu too.
OWN_OPTIONS = (BATCH, 'workers_per_gpu')
PHASES = ('train', 'val', 'test')
# The length of an example in a note, in characters.
MAX_EXAMPLE = 60


def migrate_loops(m: Migration) -> None:
    """Turn runner, length of training and validation into ``train_cfg``."""
    runner = m.set_here('runner')
    kind = runner.get('type', 'EpochBasedRunner')
    if kind not in RUNNERS:
        m.left(
            ('runner', 'type'),
            f'{kind} is no runner of mmcv: MMEngine '
            'has loops instead, write train_cfg for it',
        )
        m.old.discard('runner')
    train: ConfigDict = {}
    length = m.loop.total
    name, unit = 'Iter', 'max_iters'
    if m.loop.by_epoch:
        name, unit = 'Epoch', 'max_epochs'
    if {'runner', 'total_epochs', 'total_iters'} & m.old:
        old = m.inherited.get('train_cfg') or {}
        # MMEngine refuses a train_cfg with both a type and by_epoch.
        if 'type' in old:
            train['type'] = f'{name}BasedTrainLoop'
        else:
            train['by_epoch'] = m.loop.by_epoch
        # MMEngine refuses max_epochs beside the max_iters of a base.
        if m.counts_anew and bases_have_loop(m):
            train = dict(_delete_=True, **train)
        # An inherited length comes from the base's train_cfg.
        if length is not None and length.path[0] in m.old:
            train[unit] = length
        for key in ('runner', 'total_epochs', 'total_iters'):
            if key in m.old:
                m.done(key, f'{key} -> train_cfg')
    train.update(evaluation(m))
    if train:
        m.new['train_cfg'] = train
    workflow = m.cfg.get('workflow') or []
    if 'workflow' in m.old and any(step[0] != 'train' for step in workflow):
        m.left(
            'workflow',
            "its 'val' computed losses on validation data: "
            'MMEngine has nothing like it',
        )
        m.old.discard('workflow')


def bases_have_loop(m: Migration) -> bool:
    """Whether the bases have a ``train_cfg`` once they are migrated."""
    if m.new_bases:
        return bool(m.new_bases.get('train_cfg'))
    kind = (m.inherited.get('runner') or {}).get('type')
    lengths = {'train_cfg', 'total_epochs', 'total_iters'}
    # The runner of a project stays in its base.
    return kind in RUNNERS or bool(lengths & {*m.inherited})


def evaluation(m: Migration) -> ConfigDict:
    """Return the keys of ``train_cfg`` that say when to validate."""
    config = m.set_here('evaluation')
    if 'evaluation' in m.old and not isinstance(m.cfg['evaluation'], dict):
        m.left(
            'evaluation', 'evaluation is no dict: write val_evaluator by hand'
        )
        m.old.discard('evaluation')
    if not config:
        return {}
    made: ConfigDict = {}
    by_epoch = config.get('by_epoch', m.loop.by_epoch)
    if by_epoch != m.loop.by_epoch:
        m.left(
            'evaluation',
            f'by_epoch={by_epoch} is not the unit of the '
            'loop: write train_cfg.val_interval in it',
        )
    elif is_unknown(config):
        m.left('evaluation', 'interval: write train_cfg.val_interval by hand')
    else:
        if isinstance(config.get('interval'), dict):
            made.update(stepwise(config['interval']))
        elif 'interval' in config:
            made['val_interval'] = m.keep('evaluation', 'interval')
        # mmcv's default is 1; MMEngine's is 1000 in a loop of iterations. With
        # bases it is not written: a base may have set another interval.
        elif not m.inherited:
            made['val_interval'] = 1
        if config.get('start'):
            made['val_begin'] = m.keep('evaluation', 'start')
        if 'dynamic_intervals' in config:
            made['dynamic_intervals'] = m.keep(
                'evaluation', 'dynamic_intervals'
            )
        m.done('evaluation', 'evaluation -> train_cfg.val_interval')
        report_validation_times(m, config)
    options = []
    for key in config:
        if key not in (*BEST, *WHEN, 'out_dir'):
            options.append(f'{key}={config[key]!r}')
    example = ''
    if options:
        example = f' ({shorten(", ".join(options), MAX_EXAMPLE)})'
    m.left(
        'evaluation',
        f'evaluation: write its metric{example} as val_evaluator and '
        'test_evaluator, which the dataloaders of MMEngine need',
    )
    return made


def is_unknown(config: Mapping[str, ConfigValue]) -> bool:
    """Whether the interval is neither a number nor one of mmgen's dicts."""
    interval = config.get('interval', 1)
    if isinstance(interval, dict):
        return {*interval} != {'milestones', 'interval'}
    return not (isinstance(interval, (int, float)) and interval > 0)


def stepwise(interval: Mapping[str, ConfigValue]) -> ConfigDict:
    """Return the keys of ``train_cfg`` for an interval that changes.

    mmgen writes it as ``dict(milestones=[800], interval=[100, 20])``.
    """
    first, *later = interval['interval']
    steps = list(zip(interval['milestones'], later))
    return dict(val_interval=first, dynamic_intervals=steps)


def report_validation_times(
    m: Migration, config: Mapping[str, ConfigValue]
) -> None:
    """Report where MMEngine validates at other times than mmcv."""
    interval = config.get('interval', 1)
    if isinstance(interval, dict):
        interval = interval['interval'][-1]
    total = m.loop.total
    unit = 'iteration'
    if m.loop.by_epoch:
        unit = 'epoch'
    if config.get('start') == 0:
        m.changed(
            ('evaluation', 'start'),
            '0 evaluated once before training as well; MMEngine does not',
        )
    elif (config.get('start') or 0) % interval:
        m.changed(
            ('evaluation', 'start'),
            '1.x counted the interval from there, MMEngine counts it from 0',
        )
    # MMEngine validates at the end in any case; mmcv did so only if the length
    # of training was a multiple of the interval.
    if total is None or total.value % interval:
        m.changed(
            'evaluation', f'MMEngine validates after the last {unit} as well'
        )


def migrate_resume(m: Migration) -> None:
    """Turn ``resume_from`` and ``auto_resume`` into ``resume``."""
    path = m.cfg.get('resume_from')
    if 'resume_from' in m.old and path is not None:
        # mmcv's load_from had no effect beside resume_from.
        m.new.update(resume=False, load_from=m.keep('resume_from'))
        m.done('resume_from', 'resume_from -> load_from')
        m.left(
            'resume_from',
            'a checkpoint that mmcv wrote cannot be resumed, for it has no '
            'message_hub: its weights are loaded, and training begins at 0; '
            'resume=True if it is one of MMEngine',
        )
    elif 'auto_resume' in m.old and m.cfg['auto_resume']:
        # With load_from MMEngine does not search the work_dir.
        weights = m.cfg.get('load_from')
        m.new['resume'] = weights is None
        m.done('auto_resume', 'auto_resume -> resume')
        if weights is not None:
            m.left(
                'auto_resume',
                'resume=True would resume load_from, not the latest of the '
                'work_dir: to go on, set load_from=None with it',
            )
    elif {'resume_from', 'auto_resume'} & m.old:
        m.new['resume'] = False
        key = 'resume_from' if 'resume_from' in m.old else 'auto_resume'
        m.done(key, f'{key} -> resume')


def migrate_data(m: Migration) -> None:
    """Turn ``data`` into a data loader for each phase."""
    data = m.set_here('data')
    if not data:
        return
    known = {*LOADER, *PHASES, 'shuffle'}
    made = []
    for phase in PHASES:
        name = f'{phase}_dataloader'
        known.add(name)
        if phase != 'train':
            known |= {f'{phase}_{key}' for key in OWN_OPTIONS}
        loader = dataloader(m, phase, data)
        if loader:
            m.new[name] = loader
            made.append(name)
            # MMEngine's Runner demands dataloader, cfg and evaluator of a
            # phase together; {} stands for the default loop.
            is_new = m.replaces('data') or not inherits(m, phase)
            if 'dataset' in loader and phase != 'train' and is_new:
                m.new[f'{phase}_cfg'] = {}
    if m.replaces('data'):
        delete_loaders(m)
    m.done('data', f'data -> {", ".join(made)}')
    unknown = sorted({*data} - known)
    if unknown:
        m.left('data', f'{", ".join(unknown)}: not migrated')
    if {*PHASES} & {*data}:
        m.left(
            'data',
            'datasets and pipelines are carried over as they are: '
            "give them the names and keys of your project's 2.x",
        )


def delete_loaders(m: Migration) -> None:
    """Delete the inherited loaders, which ``_delete_`` in data stands for."""
    for phase in PHASES:
        for name in (f'{phase}_dataloader', f'{phase}_cfg'):
            if name not in m.inherited or name == 'train_cfg':
                continue
            if name not in m.new:
                m.new[name] = None
            elif m.new[name]:
                m.new[name] = dict(_delete_=True, **m.new[name])


def dataloader(
    m: Migration, phase: str, data: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Return the data loader of a phase; empty if it has none.

    Args:
        m: The migration.
        phase: 'train', 'val' or 'test'.
        data: The entries of ``data`` that the file sets.
    """
    is_training = phase == 'train'
    # A loader without a dataset is incomplete.
    if phase not in data and not is_training and not inherits(m, phase):
        return {}
    common: Dict[str, Tuple[str, ...]] = {key: ('data', key) for key in data}
    special = own_options(phase, data)
    made: ConfigDict = {}
    # An option of the phase has priority over that of data.
    for options in (common, special):
        for old in filter(LOADER.__contains__, options):
            new = LOADER[old]
            # The tools of 1.x built the loaders of evaluation without
            # drop_last, and not with the batch size of training.
            is_foreign = new == 'drop_last' or (
                new == 'batch_size' and options is common
            )
            if is_training or not is_foreign:
                made[new] = m.keep(*options[old])
    if phase not in data:
        return made
    paths = {**common, **special}
    # The loader of a base has these already.
    is_new = m.replaces('data') or not inherits(m, phase)
    if not is_training:
        made.update(batch_size(m, phase, data[phase], special, is_new))
    sampler: ConfigDict = {}
    if is_new:
        sampler = dict(type='DefaultSampler', shuffle=is_training)
        # A loop of iterations needs a sampler that never ends.
        if is_training and not m.loop.by_epoch:
            sampler['type'] = 'InfiniteSampler'
    if 'shuffle' in paths and (is_training or 'shuffle' in special):
        sampler['shuffle'] = m.keep(*paths['shuffle'])
    if sampler:
        made['sampler'] = sampler
    made['dataset'] = dataset_of(m, phase, data[phase])
    return made


def own_options(
    phase: str, data: Mapping[str, ConfigValue]
) -> Dict[str, Tuple[str, ...]]:
    """Return the paths of the options for the loader of a single phase."""
    paths: Dict[str, Tuple[str, ...]] = {}
    # mmediting has them beside data.val_dataloader.
    for key in OWN_OPTIONS:
        name = f'{phase}_{key}'
        if name in data and phase != 'train':
            paths[key] = ('data', name)
    loader = f'{phase}_dataloader'
    for key in data.get(loader) or {}:
        paths[key] = ('data', loader, key)
    return paths


def inherits(m: Migration, phase: str) -> bool:
    """Whether a base has the dataset of a phase, migrated or not."""
    loader = m.inherited.get(f'{phase}_dataloader') or {}
    return phase in (m.inherited.get('data') or {}) or 'dataset' in loader


def batch_size(
    m: Migration,
    phase: str,
    dataset: ConfigValue,
    special: Collection[str],
    is_new: bool,
) -> ConfigDict:
    """Return the ``batch_size`` of a loader of evaluation, if it is missing.

    Args:
        m: The migration.
        phase: 'val' or 'test'.
        dataset: The value of the phase in ``data``.
        special: The names of the options for the loader of this phase alone.
        is_new: Whether no base has this loader.
    """
    # The tools of 1.x take the batch size of the dataset first.
    if isinstance(dataset, dict) and BATCH in dataset:
        return dict(batch_size=m.keep('data', phase, BATCH))
    if not is_new or any(LOADER.get(key) == 'batch_size' for key in special):
        return {}
    m.changed(
        ('data', phase),
        f"{phase}_dataloader.batch_size is 1, as in mmdet's and mmseg's 1.x "
        'tools; others took samples_per_gpu',
    )
    return dict(batch_size=1)


def dataset_of(m: Migration, phase: str, source: ConfigValue) -> ConfigValue:
    """Return the dataset of a phase.

    Args:
        m: The migration.
        phase: 'train', 'val' or 'test'.
        source: The value of the phase in ``data``.
    """
    dataset = m.keep('data', phase)
    if phase != 'train':
        # The batch size is a key of the loader, not of the dataset.
        dataset = m.keep('data', phase, without=(BATCH,))
    # The builder of 1.x concatenated a list of datasets by itself.
    if isinstance(source, (list, tuple)):
        return dict(type='ConcatDataset', datasets=dataset)
    return dataset
