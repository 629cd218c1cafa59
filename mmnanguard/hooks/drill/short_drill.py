"""The fire drill of a config that plans no faults itself."""

from typing import Any, Dict, List

from mmengine.config import Config

__all__ = ['plan_short_drill']

# Windows before the two faults and in the whole run: the guard watches its
# first three commits closely, and some clean ones must follow each fault.
LOSS, GRAD, END = 4, 8, 12
# A run that ends early has nothing to validate.
VALIDATION = ('dataloader', 'cfg', 'evaluator')


def plan_short_drill(cfg: Config, window: int) -> Dict[str, Any]:
    """Plan a drill of a few iterations, and return its hook.

    A NaN strikes the loss, and later a gradient: every model has both. The
    run ends after some more iterations, without validation, and saves the
    weights alone. A FlexibleRunner that trains by epochs ends with its first
    epoch.

    Args:
        cfg: The config, which is changed.
        window: The number of iterations in an update.
    """
    faults: List[Dict[str, Any]] = []
    for site, count in (('loss', LOSS), ('grad', GRAD)):
        faults.append(dict(iter=count * window, site=site, value='nan'))
    last = END * window
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks
    hooks['fire_drill'] = dict(
        type='mmnanguard.FaultInjectionHook', faults=faults, ends_at=last
    )
    hooks['checkpoint'] = dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=last,
        save_optimizer=False,
        save_param_scheduler=False,
    )
    for part in VALIDATION:
        for stage in ('val', 'test'):
            cfg[f'{stage}_{part}'] = None
    loader = cfg.get('train_dataloader')
    # MMEngine's FlexibleRunner does not know the key.
    if isinstance(loader, dict) and 'runner_type' not in cfg:
        loader['num_batch_per_epoch'] = last
    planted: Dict[str, Any] = hooks['fire_drill']
    return planted
