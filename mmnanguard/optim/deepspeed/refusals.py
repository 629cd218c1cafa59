"""The DeepSpeed engines that cannot be guarded, and why."""

from typing import Any, Dict

from mmnanguard.core import GuardConfigError

__all__ = ['check_engine']

# The inner optimizers that exchange gradients in their step, or that change
# their state before it.
OWN_EXCHANGE = ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam', 'MuonWithAuxAdam')

REASONS = {
    'pipeline': (
        'pipeline parallelism: each stage has its own losses and steps inside '
        'train_batch(), where no wrapper sees them'
    ),
    'experts': (
        'experts (MoE): their gradients are averaged over other ranks than '
        'those of the rest, and a norm of both is not known before the step'
    ),
    'nvme': (
        'offload to NVMe: gradients and weights are on disk at the moment of '
        'the verdict. Offload to the CPU is guarded'
    ),
    'param': (
        'offload of parameters: they move between host and device while the '
        'window is judged. Offload of the optimizer is guarded'
    ),
    'tensor': (
        'tensor parallelism: norms would have to be added up over a second '
        'group of ranks'
    ),
    'autocast': (
        "DeepSpeed's torch_autocast in float16: its own scaler leaves out "
        'steps unseen. Take fp16 or bf16'
    ),
    'amp': 'Apex AMP: it steps and scales unseen. Take fp16 or bf16',
    'deepcompile': (
        'DeepCompile: gradients are in the buffers of a compiled graph'
    ),
    'exchange': (
        'the optimizer {name}: it exchanges gradients or changes its state '
        'before the verdict'
    ),
    'hpz': (
        'secondary copies of weights (zero_hpz_partition_size): a rejected '
        'update would have to put them back'
    ),
    'loco': (
        'LoCo (zeropp_loco_param): what it carries from exchange to exchange '
        'cannot be put back'
    ),
    'sparse': 'sparse_gradients: they are exchanged in a form of their own',
}


def check_engine(engine: Any) -> None:
    """Refuse an engine that cannot be guarded.

    Raises:
        GuardConfigError: With the reason.
    """
    zero = find_zero_config(engine)
    inner = type(getattr(engine, 'basic_optimizer', None))
    classes = [base.__name__ for base in inner.__mro__]
    devices: Dict[str, str] = {}
    for what in ('optimizer', 'param'):
        offload = getattr(zero, f'offload_{what}', None)
        device = getattr(offload, 'device', None)
        # An enum of strings.
        devices[what] = str(getattr(device, 'value', device or 'none'))
    answers = {
        'pipeline': getattr(engine, 'pipeline_parallelism', False),
        'experts': getattr(engine, 'has_moe_layers', False),
        'nvme': 'nvme' in devices.values(),
        'param': devices['param'] != 'none',
        'tensor': getattr(engine, 'mpu', None) is not None
        or ask(engine, 'autotp_size', 0) > 1,
        'autocast': has_autocast_scaler(engine),
        'amp': ask(engine, 'amp_enabled', False),
        'deepcompile': ask(engine, 'is_deepcompile_enabled', False),
        'exchange': not set(OWN_EXCHANGE).isdisjoint(classes),
        'hpz': getattr(zero, 'zero_hpz_partition_size', 1) > 1,
        'loco': bool(getattr(zero, 'zeropp_loco_param', None)),
        'sparse': ask(engine, 'sparse_gradients_enabled', False),
    }
    for key, is_there in answers.items():
        if is_there:
            reason = REASONS[key].format(name=inner.__name__)
            raise GuardConfigError(
                f'DeepSpeed cannot be guarded with {reason}. Leave that out '
                "of the strategy's config, or take "
                "optim_wrapper.type='DeepSpeedOptimWrapper' to train without "
                'a guard.'
            )


def find_zero_config(engine: Any) -> Any:
    """Return the ZeRO part of an engine's config, or None."""
    return getattr(getattr(engine, '_config', None), 'zero_config', None)


def ask(engine: Any, method: str, default: Any) -> Any:
    """Return the answer of a method that some versions do not have."""
    asked = getattr(engine, method, None)
    return default if asked is None else asked()


def has_autocast_scaler(engine: Any) -> bool:
    """Whether PyTorch's own scaler guards the steps of an engine."""
    scalers = (
        getattr(engine, 'torch_autocast_z0_gradscaler', None),
        getattr(engine.optimizer, 'torch_autocast_gradscaler', None),
    )
    return any(scaler is not None for scaler in scalers)
