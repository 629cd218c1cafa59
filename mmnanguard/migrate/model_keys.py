"""The model's own ``train_cfg`` and ``test_cfg`` at the top level of a config.

Up to mmdet 2.8, and in mmediting and mmgen, a config has them beside the
model, and its builder gives them to the model. In MMEngine these names are
those of the loops.
"""

from typing import List, Mapping, Optional

import libcst as cst

from .config_value import ConfigDict, leave_out, select
from .dict_source import entries_of

__all__ = ['MODEL_KEYS', 'is_none', 'model_keys_in', 'move_to_model']

MODEL_KEYS = ('train_cfg', 'test_cfg')
# The keys of MMEngine's loops.
LOOP_KEYS = (
    'type',
    'by_epoch',
    'max_epochs',
    'max_iters',
    'val_begin',
    'val_interval',
    'dynamic_intervals',
    'fp16',
    '_scope_',
    '_delete_',
)
# A dict without entries, or None, is the model's only in a config of 1.x.
OLD_NAMES = (
    'optimizer',
    'optimizer_config',
    'lr_config',
    'data',
    'total_epochs',
    'total_iters',
    'runner',
    'evaluation',
    'log_config',
    'checkpoint_config',
    'dist_params',
    'workflow',
)
NEW_NAMES = (
    'optim_wrapper',
    'param_scheduler',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_cfg',
    'default_hooks',
    'env_cfg',
)


def move_to_model(cfg: ConfigDict) -> None:
    """Move the model's keys of a config's value into its model.

    A value may have the keys of both, if the base is of 1.x and the config
    that inherits it is migrated already.
    """
    for name in MODEL_KEYS:
        value = cfg.get(name)
        if not isinstance(value, dict) or 'type' in value:
            continue
        of_model = leave_out(value, LOOP_KEYS)
        if of_model:
            cfg[name] = select(value, filter(LOOP_KEYS.__contains__, value))
            if not cfg[name]:
                del cfg[name]
            model = cfg.get('model')
            # 1.x allows the key in both places only if one of them is empty.
            if isinstance(model, dict) and not model.get(name):
                cfg['model'] = {**model, name: of_model}


def model_keys_in(assigned: Mapping[str, cst.BaseExpression]) -> List[str]:
    """Return the names of a file that are the model's and not a loop's."""
    is_old = not {*OLD_NAMES}.isdisjoint(assigned)
    is_old &= {*NEW_NAMES}.isdisjoint(assigned)
    names = []
    empty = []
    for name in MODEL_KEYS:
        node = assigned.get(name)
        entries = entries_of(node)
        keys = {*(entries or ())} - {'_delete_'}
        if keys and {*LOOP_KEYS}.isdisjoint(keys):
            names.append(name)
        elif entries == {} or is_none(node):
            empty.append(name)
    if is_old or names:
        names += empty
    return sorted(names, key=MODEL_KEYS.index)


def is_none(node: Optional[cst.BaseExpression]) -> bool:
    """Whether an expression is None."""
    return isinstance(node, cst.Name) and node.value == 'None'
