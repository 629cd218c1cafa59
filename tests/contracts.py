"""Short runs with any registered hook or wrapper of mmnanguard.

New types are found in their registry; a type that needs arguments has an entry
in ``SETTINGS``.
"""

from toys import guard_hooks, make_runner, wrapper

from mmnanguard.registry import HOOKS, OPTIM_WRAPPERS

SETTINGS = {
    'BadSamplesHook': dict(interval=1),
    'BatchDumpHook': dict(save_weights=True),
    'FaultInjectionHook': dict(faults=[]),
    'Fp32ModulesHook': dict(modules=['head'], auto=True),
    'LrFactorHook': dict(factor=1.0),
    'NanGuardHook': dict(save_rng=True),
    'NanGuardAmpOptimWrapper': dict(dtype='bfloat16'),
    'RollbackHook': dict(interval=2),
    'StateAuditHook': dict(interval=1),
}
FAULT = dict(iter=3, site='loss', value='nan')


def names_of(registry):
    registry.import_from_location()
    return sorted(registry.module_dict)


HOOK_NAMES = names_of(HOOKS)
WRAPPER_NAMES = names_of(OPTIM_WRAPPERS)
# It needs an engine of DeepSpeed and MMEngine's FlexibleRunner, as in
# tests/test_runs/test_deepspeed_runs.py.
WRAPPER_NAMES.remove('NanGuardDeepSpeedOptimWrapper')


def hook_config(name):
    return dict(type=f'mmnanguard.{name}', **SETTINGS.get(name, {}))


def wrapper_config(name):
    return wrapper(name, **SETTINGS.get(name, {}))


def build(
    work_dir,
    hook=None,
    wrapper_name='NanGuardOptimWrapper',
    faults=(),
    resume_from=None,
    **changes,
):
    """Build a run of 4 iterations with a checkpoint every 2 iterations.

    Args:
        work_dir: The folder of the run.
        hook: The name of a hook that the run has besides NanGuardHook and
            EventLogHook; of these two, it takes the place of its own kind.
        wrapper_name: The type of the optimizer wrapper.
        faults: The faults of a fire drill.
        resume_from: The checkpoint to resume from.
        changes: Other arguments of the runner.
    """
    hooks = guard_hooks(*faults)
    hooks['checkpoint'] = dict(
        type='CheckpointHook', interval=2, by_epoch=False
    )
    places = {'NanGuardHook': 'nan_guard', 'EventLogHook': 'event_log'}
    if hook is not None:
        hooks.pop(places.get(hook), None)
        changes['custom_hooks'] = [hook_config(hook)]
    if resume_from is not None:
        changes.update(resume=True, load_from=str(resume_from))
    optim_wrapper = changes.pop('optim_wrapper', None)
    return make_runner(
        work_dir,
        optim_wrapper or wrapper_config(wrapper_name),
        max_iters=4,
        default_hooks=hooks,
        **changes,
    )


def train(*args, **kwargs):
    runner = build(*args, **kwargs)
    runner.train()
    return runner
