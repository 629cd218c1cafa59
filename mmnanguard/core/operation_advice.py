"""The advice on an operation that an autopsy found."""

import math
from typing import Mapping, Optional

from .causes import Advice
from .rows.autopsy import Autopsy

__all__ = ['advise_on', 'cure_of']

HALF_PRECISION = ('float16', 'bfloat16')
# Operations with a pole, and what to use in their place.
SAFE_OPS: Mapping[str, str] = {
    'log': 'safe_log',
    'log2': 'safe_log',
    'log10': 'safe_log',
    'div': 'safe_divide',
    'reciprocal': 'safe_divide',
    'sqrt': 'safe_sqrt',
    'rsqrt': 'safe_sqrt',
    'pow': 'safe_sqrt',
    '_softmax': 'masked_softmax',
    'norm': 'safe_norm',
    'linalg_vector_norm': 'safe_norm',
}
DERIVATIVES = 'safe_sqrt or safe_norm'
POSITIVE = 'Make its input positive (softplus, exp, clamp)'
# By operation: what is outside of its domain, and what helps.
DOMAINS: Mapping[str, str] = {
    'log': POSITIVE,
    'log2': POSITIVE,
    'log10': POSITIVE,
    'sqrt': POSITIVE,
    'rsqrt': POSITIVE,
    'pow': 'Make its base positive (softplus, exp, clamp)',
}


def advise_on(finding: Autopsy) -> Advice:
    """Return the advice on the operation at fault.

    What was tried and helped comes before what is known in general.
    """
    return (
        cure_of(finding)
        or kept_of(finding)
        or mask_of(finding)
        or pole_of(finding)
        or overflow_of(finding)
    )


def cure_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice that a replay has tried with success, if any."""
    helped = {cure for cure, is_finite in finding.tried.items() if is_finite}
    if finding.remedy and finding.module:
        helped.add('module_fp32')
    where = finding.module
    epsilon = ''
    if finding.is_rounding:
        epsilon = (
            f' A larger epsilon may help as well: in {finding.dtype}, 1e-12 '
            'or 1 - 1e-4 may be rounded to 0 or 1.'
        )
    if 'lower_scale' in helped:
        return Advice(
            'lower optim_wrapper.loss_scale',
            'Only the loss scale is too high: run again at the lowest scale, '
            'the update is finite. Lower optim_wrapper.loss_scale, or train '
            "with optim_wrapper.dtype='bfloat16', which needs none.",
        )
    if 'module_fp32' in helped:
        return Advice(
            f"run '{where}' in float32",
            f"Run '{where}' in float32, which was tried and is finite: "
            "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
            f'modules=[{finding.module!r}])).{epsilon}',
        )
    if 'bfloat16' in helped:
        return Advice(
            "set optim_wrapper.dtype='bfloat16'",
            "Set optim_wrapper.dtype='bfloat16', which was tried and is "
            f'finite.{epsilon}',
        )
    if 'fp32' in helped or finding.fp32_is_finite:
        return Advice(
            'train in float32',
            'In float32 the update is finite, which was tried: train with '
            'mmnanguard.NanGuardOptimWrapper, or find the modules to run in '
            f'float32 (mmnanguard.Fp32ModulesHook).{epsilon}',
        )
    return None


def kept_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on a bad tensor that the model keeps, if any."""
    if not finding.is_kept:
        return None
    where = finding.source or finding.module_type
    if not finding.keys:
        return Advice(
            f'look at the tensors that the code at {where} uses',
            f'The code at {where} {finding.kept()}: look where it comes from, '
            'such as NumPy, another process, or a variable outside of the '
            'model.',
        )
    names = ', '.join(map(repr, finding.keys))
    return Advice(
        f'make {names} a buffer of the model',
        f'The code at {where} {finding.kept()}. A rejected update puts '
        'parameters and buffers back, but no plain attributes, so that one '
        'bad batch stays in them for good: use register_buffer, or reset '
        f'{names} when it is not finite.',
    )


def mask_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on a mask that meets what does not leave it out."""
    if not finding.mask:
        return None
    return Advice(
        f'keep the mask of {finding.mask} out of the loss',
        f'{finding.mask} writes Inf or NaN as a mask, which is no overflow, '
        'but what follows does not leave it out: a sum or mean keeps it, and '
        '0 times Inf is NaN (label smoothing, weights of 0). Leave masked '
        'elements out with torch.where before the sum, or mask with a large '
        'finite number.',
    )


def pole_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on an operation that is not defined for its input."""
    if not finding.is_pole:
        return None
    where = finding.source or finding.module_type
    if not all(map(math.isfinite, finding.operands)):
        return Advice(
            f'look at the number that the code at {where} computes with',
            f'The code at {where} passes a number to {finding.op} that is not '
            'finite, such as a weight of the loss: look where it comes from.',
        )
    name = finding.op.split('.')[-1].rstrip('_')
    safe = SAFE_OPS.get(name, 'the safe operations')
    operation, what = finding.op, f'{finding.op} at {where}'
    if finding.phase == 'backward':
        safe = SAFE_OPS.get(finding.derivative, DERIVATIVES)
        what += ', the derivative of that line,'
    if finding.derivative:
        operation = finding.derivative
        what = f'The derivative of {operation} at {where}'
    if finding.phase != 'backward' and is_outside_domain(name, finding):
        return Advice(
            f'keep the input of {finding.op} at {where} in its domain',
            f'{finding.op} at {where} {finding.pole()}, which is outside '
            'of its domain: no epsilon, no dtype, no loss scale and no '
            f'clipping changes that. {DOMAINS[name]}.',
        )
    return Advice(
        f'keep the input of {operation} at {where} away from its pole',
        f'{what} is not defined for this input, a pole: no dtype, no loss '
        f'scale and no clipping changes that. Add an epsilon, clamp, or use '
        f'{safe} of mmnanguard.numerics.',
    )


def is_outside_domain(name: str, finding: Autopsy) -> bool:
    """Whether the operation met a negative number, and not its pole at 0."""
    is_nan = math.isnan(finding.output_absmax)
    operands = finding.operands
    return is_nan and name in DOMAINS and bool(operands) and operands[0] < 0


def overflow_of(finding: Autopsy) -> Advice:
    """Return the advice on an overflow that no cure has helped against."""
    where = finding.source or finding.module_type
    limit = f'{finding.dtype_max:.3g} of {finding.dtype}'
    if finding.dtype in HALF_PRECISION and not finding.tried:
        return Advice(
            'try float32 for the module at fault',
            f'{finding.op} at {where} is beyond {limit}; whether float32 or '
            'bfloat16 helps was not tried: mmnanguard.AutopsyHook('
            'try_cures=True) tries it.',
        )
    if finding.is_near_pole:
        return Advice(
            f'keep the divisor of {finding.op} at {where} away from 0',
            f'{finding.op} at {where} {finding.overflow()}. Clamp what is '
            'divided by from below or add an epsilon; in a backward pass it '
            'is the input of that line, such as the probability of a log, '
            'which is safer computed in the log domain (logsumexp).',
        )
    numbers = f'got numbers of up to {finding.input_absmax:.3g}'
    if finding.call():
        numbers = f'computes {finding.call()}'
    return Advice(
        f'look at the numbers that reach {finding.op} at {where}',
        f'{finding.op} at {where} {numbers} and is beyond the {limit}: '
        'normalize or clamp its input, or look for weights that have grown.',
    )
