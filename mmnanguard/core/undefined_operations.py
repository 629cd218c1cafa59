"""The operations that are not defined everywhere, and what helps.

An autopsy finds the operation; these tables hold what is known about it.
"""

import math
from types import MappingProxyType
from typing import Mapping, NamedTuple, Optional, Tuple

__all__ = [
    'BOUNDED',
    'DERIVATIVES',
    'DOMAINS',
    'MATRICES',
    'NOT_DEFINED',
    'SAFE_OPS',
    'Undefined',
    'known_fault',
]


class Undefined(NamedTuple):
    """The reason why an operation is not defined, and what helps.

    Attributes:
        short: The advice, as a clause in the imperative.
        reason: What the operation got, as the end of a sentence about it.
        cure: The advice, as a sentence without its full stop.
    """

    short: str
    reason: str
    cure: str


# Operations with a pole, and what to use in their place.
SAFE_OPS: Mapping[str, str] = MappingProxyType(
    {
        'log': 'safe_log',
        'log2': 'safe_log',
        'log10': 'safe_log',
        'xlogy': 'safe_log',
        'special_entr': 'safe_log',
        'div': 'safe_divide',
        'reciprocal': 'safe_divide',
        'sqrt': 'safe_sqrt',
        'rsqrt': 'safe_sqrt',
        'pow': 'safe_sqrt',
        'std': 'safe_sqrt',
        'cdist': 'safe_norm',
        'dist': 'safe_norm',
        'norm': 'safe_norm',
        'linalg_vector_norm': 'safe_norm',
    }
)
BOUNDED = ('acos', 'asin', 'atanh')
POSITIVE = 'Make its input positive (softplus, exp, clamp)'
ROUNDED = (
    'A number this close to 0 may be rounding, as in a difference of squares: '
    'clamp its input to 1e-12 or more, for the derivative at 0 is Inf'
)
WITHIN_1 = (
    'Rounding makes the cosine of equal directions more than 1, as in '
    '1.0000001: clamp its input to [-1 + 1e-6, 1 - 1e-6], where its '
    'derivative is finite as well'
)
# By operation: the interval of its first operand, and what helps outside.
DOMAINS: Mapping[str, Tuple[float, float, str]] = MappingProxyType(
    {
        'log': (0.0, math.inf, POSITIVE),
        'log2': (0.0, math.inf, POSITIVE),
        'log10': (0.0, math.inf, POSITIVE),
        'log1p': (-1.0, math.inf, 'Make its input larger than -1 (clamp)'),
        'sqrt': (0.0, math.inf, POSITIVE),
        'rsqrt': (0.0, math.inf, POSITIVE),
        'acos': (-1.0, 1.0, WITHIN_1),
        'asin': (-1.0, 1.0, WITHIN_1),
        'atanh': (-1.0, 1.0, WITHIN_1),
        'pow': (
            0.0,
            math.inf,
            'Make its base positive (softplus, exp, clamp)',
        ),
    }
)
NO_LABEL = Undefined(
    'leave batches without labels out of the loss',
    'averages over no label: all labels are ignored (ignore_index), or their '
    'classes have a weight of 0',
    'Sum the losses of all labels (reduction="sum") and divide by their '
    'number, which is at least 1 (clamp), or mend the labels',
)
TOO_FEW = Undefined(
    'leave out averages over too few elements',
    'averages over too few elements: a selection is empty, or one element '
    'has no standard deviation',
    'Leave such batches out of this term, or divide a sum by a number that '
    'is at least 1 (clamp)',
)
ALL_MASKED = Undefined(
    'keep an element of each masked row',
    'got a row that is masked as a whole, with nothing but -inf',
    'Keep an element of each row, or use masked_softmax of '
    'mmnanguard.numerics',
)
NO_PATH = Undefined(
    'give the CTC loss as many steps as labels',
    'finds no path: an input has fewer steps than its labels need, one for '
    'each and one more between two equal labels',
    'Leave such samples out, make their inputs longer (less downsampling), '
    'or set zero_infinity=True',
)
BELOW_0 = Undefined(
    'look at the running variance',
    'takes the root of a variance plus eps that is 0 or less: the running '
    'variance is negative, or it is 0 without an eps',
    'Look where the running variance was written, such as the file that it '
    'was loaded from, and set an eps above 0',
)
NO_EPS = Undefined(
    'set an eps above 0',
    'divides by the root of a variance and an eps that are both 0',
    'Set an eps above 0: elements that are all alike have no variance',
)
# By operation that gives NaN or Inf of finite numbers or masks.
NOT_DEFINED: Mapping[str, Undefined] = MappingProxyType(
    {
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
        '_weight_norm_interface': Undefined(
            'initialize the weight with other numbers than 0',
            'divides by the norm of a row of the weight, which is 0',
            'Initialize it with other numbers: rows of 0 have no direction',
        ),
        '_softmax': ALL_MASKED,
        '_log_softmax': ALL_MASKED,
        '_ctc_loss': NO_PATH,
        '_cudnn_ctc_loss': NO_PATH,
        'native_batch_norm': BELOW_0,
        '_native_batch_norm_legit': BELOW_0,
        '_native_batch_norm_legit_no_training': BELOW_0,
        '_batch_norm_no_update': BELOW_0,
        '_batch_norm_with_update': BELOW_0,
        'cudnn_batch_norm': BELOW_0,
        'miopen_batch_norm': BELOW_0,
        'native_layer_norm': NO_EPS,
        'native_group_norm': NO_EPS,
        # PyTorch fills in NaN for it, see ModuleProbe.
        'logdet': Undefined(
            'keep the determinant positive',
            'got a matrix whose determinant is negative: it has no log',
            'Use torch.linalg.slogdet(matrix)[1], the log of its absolute '
            'value, or start and stay with a positive one, such as by '
            'triangular factors with exp on the diagonal',
        ),
    }
)
SINGULAR = Undefined(
    'keep the matrix invertible',
    'got a singular matrix, or one that is nearly so',
    'Add a small number to the diagonal (matrix + 1e-6 * torch.eye(n)), use '
    'a least-squares solution (lstsq, pinv), or look for rows that are 0 or '
    'alike',
)
# By operation on matrices; whether it goes bad in float64 as well depends on
# rounding.
MATRICES: Mapping[str, Undefined] = MappingProxyType(
    {
        '_linalg_slogdet': Undefined(
            'keep the determinant away from 0',
            'got a matrix whose determinant is 0: its log is -Inf',
            'Add a small number to the diagonal (matrix + 1e-6 * '
            'torch.eye(n)), or use triangular factors with exp on the '
            'diagonal',
        ),
        'linalg_inv_ex': SINGULAR,
        '_linalg_solve_ex': SINGULAR,
        'linalg_lu_solve': SINGULAR,
        'linalg_solve_triangular': SINGULAR,
        'triangular_solve': SINGULAR,
        'cholesky_solve': SINGULAR,
        'cholesky_inverse': SINGULAR,
    }
)
NOT_UNIQUE = Undefined(
    'keep the eigenvalues or singular values apart',
    'divides by the differences of eigenvalues, or by singular values and '
    'their differences, of which one is 0: the vectors are not unique',
    'Use the values alone (eigvalsh, svdvals), or add small numbers that '
    'differ to the diagonal',
)
# By operation whose derivative is not defined.
DERIVATIVES: Mapping[str, Undefined] = MappingProxyType(
    {
        'linalg_eigh': NOT_UNIQUE,
        'linalg_eig': NOT_UNIQUE,
        'linalg_svd': NOT_UNIQUE,
        'linalg_qr': Undefined(
            'keep the columns of the matrix independent',
            'divides by the diagonal of R, which has a 0: the matrix has not '
            'full rank',
            'Add a small random matrix, or look for columns that are 0 or '
            'alike',
        ),
        'linalg_cholesky_ex': Undefined(
            'keep the matrix positive definite',
            'divides by the diagonal of its factor, which has a 0',
            'Add a small number to the diagonal (matrix + 1e-6 * '
            'torch.eye(n))',
        ),
    }
)


def known_fault(op: str) -> Optional[Undefined]:
    """Return what is known about an operation that is not defined, if any.

    Args:
        op: The operation, such as 'aten.mean'.
    """
    name = op.split('.')[-1].rstrip('_')
    return MATRICES.get(name) or NOT_DEFINED.get(name)
