"""Ring 3: layers built on the safe operations, for any mm model's config.

Reading order: ``safe_rms_norm``, ``safe_ada_ln_zero`` (a norm with scale,
shift and gate, built on it) and ``safe_attention``.
"""

from .safe_ada_ln_zero import SafeAdaLNZero
from .safe_attention import SafeAttention
from .safe_rms_norm import SafeRMSNorm

__all__ = ['SafeAdaLNZero', 'SafeAttention', 'SafeRMSNorm']
