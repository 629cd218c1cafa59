"""The advice on an operation that an autopsy found."""

import math
from typing import Optional

from .causes import Advice
from .rows.autopsy import Autopsy
from .rows.remedy_row import line_of_fp32
from .undefined_operations import (
    BOUNDED,
    DERIVATIVES,
    DOMAINS,
    NOT_DEFINED,
    ROUNDED,
    SAFE_OPS,
    known_fault,
)

__all__ = ['advise_on', 'advise_without_cures', 'cure_of']

HALF_PRECISION = ('float16', 'bfloat16')
PRECISIONS = {'fp32', 'module_fp32', 'bfloat16'}
CAST = 'aten._to_copy'
LEAST_NEGATIVE = 1e-3  # a smaller number may be a rounded 0


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
        or undefined_of(finding)
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
    if finding.phase != 'input':
        return None
    keys = ', '.join(map(repr, finding.keys)) or 'the batch'
    where = finding.source or finding.module_type
    return Advice(
        f'leave NaN or Inf of {keys} out before {where} computes with it',
        f'The loss is finite without NaN or Inf of {keys}, but the derivative '
        f'of {finding.derivative} at {where} is not: 0 times NaN or Inf is '
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
    where = finding.source or finding.module_type
    if finding.is_all_masked:
        return Advice(
            f'keep an element of each masked row at {where}',
            f'{finding.op} at {where} got a row that is masked as a whole '
            f'({finding.mask}), and is -inf itself. Keep an element of each '
            'row, leave such rows out, or mask with a large finite number.',
        )
    if finding.phase == 'backward':
        return Advice(
            f'mask after {where} computes, or with a large finite number',
            f'{finding.mask} writes Inf or NaN as a mask. The loss leaves it '
            f'out and is finite, but the derivative of {finding.derivative} '
            f'at {where} multiplies it by 0, which is NaN. Mask after that '
            'line, or with a large finite number, such as -1e4. No dtype, no '
            'loss scale and no clipping changes that.',
        )
    return Advice(
        f'keep the mask of {finding.mask} out of the loss',
        f'{finding.mask} writes Inf or NaN as a mask, which is no overflow, '
        'but what follows does not leave it out: a sum or mean keeps it, so '
        'does a cross entropy whose label is masked, and 0 times Inf is NaN '
        '(label smoothing, weights of 0). Leave masked elements out with '
        'torch.where before the sum, or mask with a large finite number.',
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
            'finite, such as a weight of the loss, or a constant that is '
            'beyond float16: look where it comes from.',
        )
    if finding.is_own_backward:
        return Advice(
            f'mend the backward pass at {where}',
            f'The backward pass of an autograd.Function '
            f'({finding.derivative}) computes {finding.op} at {where}, which '
            f'{finding.pole()}: clamp what is computed there, or leave such '
            'elements out.',
        )
    name = finding.op.split('.')[-1].rstrip('_')
    operation, what = finding.op, f'{finding.op} at {where}'
    if finding.derivative:
        operation = finding.derivative
        what = f'The derivative of {operation} at {where}'
    if finding.phase != 'backward' and is_outside_domain(name, finding):
        return Advice(
            f'keep the input of {finding.op} at {where} in its domain',
            f'{finding.op} at {where} {finding.pole()}, which is outside '
            'of its domain: no epsilon, no dtype, no loss scale and no '
            f'clipping changes that. {cure_outside(name, finding)}.',
        )
    no_dtype, rounded = 'no dtype, ', ''
    if finding.dtype in HALF_PRECISION:
        no_dtype = ''
        rounded = (
            f' In {finding.dtype}, a small epsilon may be rounded away (1e-8 '
            'to 0, 1 - 1e-4 to 1): compute this line in float32.'
        )
    return Advice(
        f'keep the input of {operation} at {where} away from its pole',
        f'{what} is not defined for this input, a pole: {no_dtype}no loss '
        f'scale and no clipping changes that. {cure_at_pole(finding)}.'
        f'{rounded}',
    )


def cure_at_pole(finding: Autopsy) -> str:
    """Return what helps at the pole of an operation or its derivative."""
    name = finding.op.split('.')[-1].rstrip('_')
    is_at_end = name in BOUNDED and finding.operands[:1] in ((1.0,), (-1.0,))
    if finding.derivative in BOUNDED or is_at_end:
        return 'Clamp its input to [-1 + 1e-6, 1 - 1e-6]'
    if finding.derivative == 'acosh':
        return 'Clamp its input to 1 + 1e-6 or more'
    safe = SAFE_OPS.get(finding.derivative or name)
    # x ** -6 is a division.
    if name == 'pow' and not finding.derivative:
        safe = 'safe_divide' if finding.operands[-1:] < (0.0,) else safe
    if safe is None:
        return (
            'Keep its input away from there: clamp it before, or replace such '
            'elements by torch.where before the operation'
        )
    cure = f'Add an epsilon, clamp, or use {safe} of mmnanguard.numerics'
    if safe == 'safe_log':
        cure += ', or compute in the log domain (log_softmax, logsigmoid)'
    return cure


def undefined_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on an operation whose conditions are known, if any."""
    where = finding.source or finding.module_type
    if finding.phase == 'backward':
        known = DERIVATIVES.get(finding.derivative)
        what = f'The derivative of {finding.derivative} at {where}'
        if not finding.is_pole:
            return None
    else:
        known = known_fault(finding.op)
        # Rounding decides whether a matrix is singular in float64 as well.
        if known in NOT_DEFINED.values() and not finding.is_pole:
            return None
        what = f'{finding.op} at {where}'
    if known is None:
        return None
    no_help = ''
    if finding.is_pole:
        no_help = ' No dtype, no loss scale and no clipping changes that.'
    return Advice(
        f'{known.short} at {where}',
        f'{what} {known.reason}. {known.cure}.{no_help}',
    )


def cure_outside(name: str, finding: Autopsy) -> str:
    """Return what helps outside of an operation's domain."""
    number = finding.operands[0]
    if name in ('sqrt', 'rsqrt', 'pow') and -LEAST_NEGATIVE < number < 0:
        return ROUNDED
    return DOMAINS[name][2]


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
    hints = ''
    if finding.input_absmax == finding.dtype_max:
        hints = (
            ' A number at the very limit is what nan_to_num makes of Inf, or '
            'a mask of torch.finfo(dtype).min: use masked_fill, or a smaller '
            'number, where it is added to another one.'
        )
    if finding.dtype in HALF_PRECISION:
        hints += (
            ' Code that casts by itself (.half()) is not changed by autocast: '
            'cast this line to float32 (.float()).'
        )
    return Advice(
        f'look at the numbers that reach {finding.op} at {where}',
        f'{finding.op} at {where} {numbers} and is beyond the {limit}: '
        'normalize or clamp its input, or look for weights that have grown.'
        f'{hints}',
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
