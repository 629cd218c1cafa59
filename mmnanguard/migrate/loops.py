"""``runner``, ``evaluation``, ``data``: the loops and their data."""

from typing import Any, Dict, Mapping

from .migration import Migration

__all__ = ['migrate_data', 'migrate_loops', 'migrate_resume']

RUNNERS = {'EpochBasedRunner': True, 'IterBasedRunner': False}
# Of EvalHook; the others went to the dataset's evaluate().
BEST = ('save_best', 'rule', 'greater_keys', 'less_keys')
WHEN = ('interval', 'start', 'by_epoch', 'dynamic_intervals')
LOADER = {
    'samples_per_gpu': 'batch_size',
    'workers_per_gpu': 'num_workers',
    'persistent_workers': 'persistent_workers',
    'pin_memory': 'pin_memory',
    'prefetch_factor': 'prefetch_factor',
    'drop_last': 'drop_last',
    'timeout': 'timeout',
}
BATCH = 'samples_per_gpu'
PHASES = ('train', 'val', 'test')


def migrate_loops(m: Migration) -> None:
    runner = m.own('runner')
    kind = runner.get('type', 'EpochBasedRunner')
    if kind not in RUNNERS:
        m.left(
            ('runner', 'type'),
            f'{kind} is no runner of mmcv: MMEngine '
            'has loops instead, write train_cfg for it',
        )
        m.old.discard('runner')
    train: Dict[str, Any] = {}
    length = m.loop.total
    if {'runner', 'total_epochs', 'total_iters'} & m.old:
        old = m.inherited.get('train_cfg') or {}
        if 'type' in old:
            name = 'Epoch' if m.loop.by_epoch else 'Iter'
            train['type'] = f'{name}BasedTrainLoop'
        else:
            train['by_epoch'] = m.loop.by_epoch
        if m.counts_anew:
            train = dict(_delete_=True, **train)
        unit = 'max_epochs' if m.loop.by_epoch else 'max_iters'
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


def evaluation(m: Migration) -> Dict[str, Any]:
    own = m.own('evaluation')
    if not own:
        return {}
    made: Dict[str, Any] = {}
    by_epoch = own.get('by_epoch', m.loop.by_epoch)
    if by_epoch != m.loop.by_epoch:
        m.left(
            'evaluation',
            f'by_epoch={by_epoch} is not the unit of the '
            'loop: write train_cfg.val_interval in it',
        )
    else:
        if 'interval' in own:
            made['val_interval'] = m.keep('evaluation', 'interval')
        elif not m.inherited:
            made['val_interval'] = 1
        if own.get('start'):
            made['val_begin'] = m.keep('evaluation', 'start')
        if 'dynamic_intervals' in own:
            made['dynamic_intervals'] = m.keep(
                'evaluation', 'dynamic_intervals'
            )
        m.done('evaluation', 'evaluation -> train_cfg.val_interval')
        tell_when(m, own)
    rest = [key for key in own if key not in (*BEST, *WHEN, 'out_dir')]
    told = ', '.join(f'{key}={own[key]!r}' for key in rest)
    m.left(
        'evaluation',
        'which metric, only you know'
        + (f' (here {told})' if told else '')
        + ': write val_evaluator (and test_evaluator), which MMEngine asks '
        'for wherever there is a val_dataloader',
    )
    return made


def tell_when(m: Migration, own: Mapping[str, Any]) -> None:
    interval = own.get('interval', 1)
    total = m.loop.total
    if own.get('start') == 0:
        m.changed(
            ('evaluation', 'start'),
            '0 evaluated once before training as well; MMEngine does not',
        )
    elif (own.get('start') or 0) % interval:
        m.changed(
            ('evaluation', 'start'),
            '1.x counted the interval from there, MMEngine counts it from 0',
        )
    if total is None or total.value % interval:
        m.changed(
            'evaluation',
            'MMEngine validates after the last '
            f'{"epoch" if m.loop.by_epoch else "iteration"} as well',
        )


def migrate_resume(m: Migration) -> None:
    path = m.cfg.get('resume_from')
    if 'resume_from' in m.old and path is not None:
        m.new.update(resume=False, load_from=m.keep('resume_from'))
        m.done('resume_from', 'resume_from -> load_from')
        m.left(
            'resume_from',
            'a checkpoint that mmcv wrote cannot be resumed, for it has no '
            'message_hub: its weights are loaded, and training begins at 0; '
            'resume=True if it is one of MMEngine',
        )
    elif 'auto_resume' in m.old and m.cfg['auto_resume']:
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
    own = m.own('data')
    if not own:
        return
    known = {*LOADER, *PHASES, *[f'{phase}_dataloader' for phase in PHASES]}
    known |= {'shuffle', 'test_samples_per_gpu'}
    for phase in PHASES:
        loader = dataloader(m, phase, own)
        if loader:
            m.new[f'{phase}_dataloader'] = loader
            if 'dataset' in loader and phase != 'train':
                m.new[f'{phase}_cfg'] = {}
    m.done(
        'data',
        'data -> '
        + ', '.join(
            f'{p}_dataloader' for p in PHASES if f'{p}_dataloader' in m.new
        ),
    )
    unknown = sorted({*own} - known)
    if unknown:
        m.left('data', f'{", ".join(unknown)}: not migrated')
    if {*PHASES} & {*own}:
        m.left(
            'data',
            'datasets and pipelines are carried over as they are: '
            "give them the names and keys of your project's 2.x",
        )


def dataloader(
    m: Migration, phase: str, own: Mapping[str, Any]
) -> Dict[str, Any]:
    special = own.get(f'{phase}_dataloader') or {}
    paths = {key: ('data', key) for key in own}
    paths.update(
        {key: ('data', f'{phase}_dataloader', key) for key in special}
    )
    is_training = phase == 'train'
    if not is_training and phase not in own:
        return {}
    made: Dict[str, Any] = {}
    for old, new in LOADER.items():
        if old in paths and (is_training or old != 'drop_last'):
            made[new] = m.keep(*paths[old])
    own_size = isinstance(own.get(phase), dict) and BATCH in own[phase]
    if not is_training and own_size:  # where 1.x looks first
        made['batch_size'] = m.keep('data', phase, BATCH)
    elif not is_training and BATCH not in special:
        made['batch_size'] = 1
        m.changed(
            ('data', phase),
            f'{phase}_dataloader.batch_size is 1, as '
            "in mmdet's and mmseg's 1.x tools; others took "
            'samples_per_gpu',
        )
    if phase in own:
        source = own[phase]
        without = () if is_training else (BATCH,)
        dataset: Any = m.keep('data', phase, without=without)
        if isinstance(source, (list, tuple)):
            dataset = dict(type='ConcatDataset', datasets=dataset)
        sampler = 'DefaultSampler'
        if is_training and not m.loop.by_epoch:
            sampler = 'InfiniteSampler'
        shuffle: Any = is_training
        if 'shuffle' in paths and (is_training or 'shuffle' in special):
            shuffle = m.keep(*paths['shuffle'])
        made['sampler'] = dict(type=sampler, shuffle=shuffle)
        made['dataset'] = dataset
    return made
