"""Migration of the keys that only move, or that MMEngine does not need."""

from .config_value import ConfigDict
from .migration import Migration

__all__ = ['migrate_environment']

# The key of 1.x, and the path of keys that it becomes.
MOVED = {
    'dist_params': ('env_cfg', 'dist_cfg'),
    'cudnn_benchmark': ('env_cfg', 'cudnn_benchmark'),
    'opencv_num_threads': ('env_cfg', 'mp_cfg', 'opencv_num_threads'),
    'mp_start_method': ('env_cfg', 'mp_cfg', 'mp_start_method'),
    'seed': ('randomness', 'seed'),
    'deterministic': ('randomness', 'deterministic'),
}
# MMEngine takes the devices from the launcher, and its loops replace workflow.
GONE = ('workflow', 'gpu_ids', 'gpus', 'device')


def migrate_environment(m: Migration) -> None:
    """Move keys to ``env_cfg`` and ``randomness``; drop unneeded keys."""
    for key, path in MOVED.items():
        if key not in m.old:
            continue
        place: ConfigDict = m.new
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = m.keep(key)
        m.done(key, f'{key} -> {".".join(path)}')
    for key in GONE:
        if key in m.old:
            m.done(key, f'{key}: nothing in MMEngine reads it, left out')
    if m.set_here('optimizer_config').get('detect_anomalous_params'):
        m.new['model_wrapper_cfg'] = dict(
            type='MMDistributedDataParallel', detect_anomalous_params=True
        )
        # MMEngine reads the option at the top level only if there is no
        # model_wrapper_cfg.
        if 'find_unused_parameters' in m.cfg:
            m.new['model_wrapper_cfg']['find_unused_parameters'] = m.cfg[
                'find_unused_parameters'
            ]
        m.done(
            ('optimizer_config', 'detect_anomalous_params'),
            'detect_anomalous_params -> model_wrapper_cfg; it looks for '
            'parameters without a gradient, not for NaN',
        )
