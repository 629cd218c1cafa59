"""The advice on an operation that an autopsy found."""

import math
from typing import Mapping, Optional, Tuple

from .causes import Advice
from .rows.autopsy import Autopsy
from .rows.remedy_row import line_of_fp32

__all__ = ['advise_on', 'advise_without_cures', 'cure_of']

HALF_PRECISION = ('float16', 'bfloat16')
PRECISIONS = {'fp32', 'module_fp32', 'bfloat16'}
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
    'norm': 'safe_norm',
    'linalg_vector_norm': 'safe_norm',
}
DERIVATIVES = 'safe_sqrt or safe_norm'
BOUNDED = ('acos', 'asin', 'atanh')
CAST = 'aten._to_copy'
DECOMPOSITIONS = ('linalg_eigh', 'linalg_eig', 'linalg_svd')
POSITIVE = 'Make its input positive (softplus, exp, clamp)'
WITHIN_1 = (
    'Rounding makes the cosine of equal directions more than 1, as in '
    '1.0000001: clamp its input to [-1 + 1e-6, 1 - 1e-6], where its '
    'derivative is finite as well'
)
# By operation: the interval of its first operand, and what helps outside.
DOMAINS: Mapping[str, Tuple[float, float, str]] = {
    'log': (0.0, math.inf, POSITIVE),
    'log2': (0.0, math.inf, POSITIVE),
    'log10': (0.0, math.inf, POSITIVE),
    'log1p': (-1.0, math.inf, 'Make its input larger than -1 (clamp)'),
    'sqrt': (0.0, math.inf, POSITIVE),
    'rsqrt': (0.0, math.inf, POSITIVE),
    'acos': (-1.0, 1.0, WITHIN_1),
    'asin': (-1.0, 1.0, WITHIN_1),
    'atanh': (-1.0, 1.0, WITHIN_1),
    'pow': (0.0, math.inf, 'Make its base positive (softplus, exp, clamp)'),
}
NO_LABEL = (
    'leave batches without labels out of the loss',
    'averages over no label: all labels are ignored (ignore_index), or their '
    'classes have a weight of 0',
    'Sum the losses of all labels (reduction="sum") and divide by their '
    'number, which is at least 1 (clamp), or mend the labels',
)
TOO_FEW = (
    'leave out averages over too few elements',
    'averages over too few elements: a selection is empty, or one element '
    'has no standard deviation',
    'Leave such batches out of this term, or divide a sum by a number that '
    'is at least 1 (clamp)',
)
ALL_MASKED = (
    'keep an element of each masked row',
    'got a row that is masked as a whole, with nothing but -inf',
    'Keep an element of each row, or use masked_softmax of '
    'mmnanguard.numerics',
)
# By operation that gives NaN of finite numbers or masks: the advice in short,
# the reason, and what helps.
NOT_DEFINED: Mapping[str, Tuple[str, str, str]] = {
    'nll_loss_forward': NO_LABEL,
    'nll_loss2d_forward': NO_LABEL,
    'mean': TOO_FEW,
    'var': TOO_FEW,
    'std': TOO_FEW,
    'var_mean': TOO_FEW,
    'std_mean': TOO_FEW,
    # Their mean of nothing is the only NaN that they make.
    'binary_cross_entropy': TOO_FEW,
    'binary_cross_entropy_with_logits': TOO_FEW,
    'huber_loss': TOO_FEW,
    'mse_loss': TOO_FEW,
    'smooth_l1_loss': TOO_FEW,
    '_softmax': ALL_MASKED,
    '_log_softmax': ALL_MASKED,
}


def advise_on(finding: Autopsy) -> Advice:
    """Return the advice on the operation at fault.

    What was tried and helped comes before what is known in general.
    """
    return cure_of(finding) or advise_without_cures(finding)


def advise_without_cures(finding: Autopsy) -> Advice:
    """Return the advice on the operation at fault, whatever has helped."""
    return (
        left_out_of(finding)
        or kept_of(finding)
        or mask_of(finding)
        or pole_of(finding)
        or huge_weight_of(finding)
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
            f'{line_of_fp32([finding.module])}.{epsilon}',
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


def left_out_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on bad inputs that the loss leaves out, if any."""
    if not finding.is_left_out:
        return None
    keys = ', '.join(map(repr, finding.keys)) or 'the batch'
    where = finding.source or finding.module_type
    return Advice(
        f'leave NaN of {keys} out before {where} computes with it',
        f'The loss is finite although {keys} is not, but the derivative of '
        f'{finding.derivative} at {where} is not, for 0 times NaN or Inf is '
        'NaN. Leave such elements out before that line, as in '
        'output[valid] - target[valid], or put a finite number in their place '
        'before it (torch.where(valid, target, 0.0)) and leave them out of '
        f'the loss as you do. If {keys} should hold no NaN or Inf, mend the '
        'samples, which mmnanguard.InputGuardHook names.',
    )


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
    if finding.is_all_masked:
        return Advice(
            f'mask with a large finite number at {where}',
            f'The {finding.derivative} at {where} got nothing but -inf, so '
            'that its derivative is NaN, even where its value is left out '
            'later. Mask with a large finite number, such as -1e4, in place '
            'of -inf, or leave such rows out before. No dtype, no loss scale '
            'and no clipping changes that.',
        )
    if not all(map(math.isfinite, finding.operands)):
        return Advice(
            f'look at the number that the code at {where} computes with',
            f'The code at {where} passes a number to {finding.op} that is not '
            'finite, such as a weight of the loss: look where it comes from.',
        )
    name = finding.op.split('.')[-1].rstrip('_')
    safe = SAFE_OPS.get(name, 'the safe operations')
    # x ** -6 is a division.
    if name == 'pow' and finding.operands[-1:] < (0.0,):
        safe = 'safe_divide'
    operation, what = finding.op, f'{finding.op} at {where}'
    if finding.phase == 'backward':
        safe = SAFE_OPS.get(finding.derivative, DERIVATIVES)
        what += ', the derivative of that line,'
    if finding.derivative:
        operation = finding.derivative
        what = f'The derivative of {operation} at {where}'
    if finding.derivative in DECOMPOSITIONS:
        return Advice(
            f'keep the eigenvalues of {operation} at {where} apart',
            f'{what} divides by the differences of eigenvalues or singular '
            'values, of which two are equal: their vectors are not unique. '
            'Use the values alone (eigvalsh, svdvals), or add small numbers '
            'that differ to the diagonal.',
        )
    is_forward = finding.phase != 'backward'
    if is_forward and name in NOT_DEFINED:
        short, why, cure = NOT_DEFINED[name]
        return Advice(
            f'{short} at {where}',
            f'{finding.op} at {where} {why}. {cure}. No dtype, no loss scale '
            'and no clipping changes that.',
        )
    if is_forward and is_outside_domain(name, finding):
        return Advice(
            f'keep the input of {finding.op} at {where} in its domain',
            f'{finding.op} at {where} {finding.pole()}, which is outside '
            'of its domain: no epsilon, no dtype, no loss scale and no '
            f'clipping changes that. {DOMAINS[name][2]}.',
        )
    cure = f'Add an epsilon, clamp, or use {safe} of mmnanguard.numerics'
    if finding.derivative in BOUNDED:
        cure = 'Clamp its input to [-1 + 1e-6, 1 - 1e-6]'
    return Advice(
        f'keep the input of {operation} at {where} away from its pole',
        f'{what} is not defined for this input, a pole: no dtype, no loss '
        f'scale and no clipping changes that. {cure}.',
    )


def is_outside_domain(name: str, finding: Autopsy) -> bool:
    """Whether the operation met a number outside, and not a pole."""
    is_nan = math.isnan(finding.output_absmax)
    if not is_nan or name not in DOMAINS or not finding.operands:
        return False
    low, high, _ = DOMAINS[name]
    return not low <= finding.operands[0] <= high


def overflow_of(finding: Autopsy) -> Advice:
    """Return the advice on an overflow that no cure has helped against."""
    where = finding.source or finding.module_type
    limit = f'{finding.dtype_max:.3g} of {finding.dtype}'
    if finding.dtype in HALF_PRECISION and not PRECISIONS & set(finding.tried):
        return Advice(
            'try float32 for the module at fault',
            f'{finding.op} at {where} is beyond {limit}: compute it in '
            'float32 or bfloat16. Whether that helps was not tried; under '
            'autocast, mmnanguard.AutopsyHook(try_cures=True) tries it.',
        )
    if finding.is_near_pole:
        return Advice(
            f'keep the divisor of {finding.op} at {where} away from 0',
            f'At {where}, {finding.overflow()}. Clamp what is '
            'divided by from below or add an epsilon; in a backward pass it '
            'is the input of that line, such as the probability of a log, '
            'which is safer computed in the log domain (logsumexp).',
        )
    if finding.op == CAST:
        return Advice(
            f'look at the numbers that {where} casts to {finding.dtype}',
            f'The code at {where} casts numbers of up to '
            f'{finding.input_absmax:.3g} to {finding.dtype}, beyond the '
            f'{limit}: clamp them, mask with torch.finfo(dtype).min in place '
            'of a constant such as -1e10, or keep this part in float32 or '
            'bfloat16.',
        )
    numbers = f'got numbers of up to {finding.input_absmax:.3g}'
    if finding.call():
        numbers = f'computes {finding.call()}'
    return Advice(
        f'look at the numbers that reach {finding.op} at {where}',
        f'{finding.op} at {where} {numbers} and is beyond the {limit}: '
        'normalize or clamp its input, or look for weights that have grown.',
    )


def huge_weight_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on a weight without which nothing overflowed."""
    name = finding.huge_weight
    if not name or finding.is_pole:
        return None
    return Advice(
        f"look at '{name}', which holds numbers above 1e6",
        f"The parameter '{name}' holds numbers above 1e6, which reach "
        f'{finding.op} at {finding.source or finding.module_type}. If it did '
        'so from the start, look at its initialization (torch.empty and '
        'torch.Tensor leave whatever the memory held) and at the file that '
        'it was loaded from; if it has grown, at the learning rate.',
    )
