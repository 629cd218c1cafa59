"""Ring 3: layers built on the safe operations, for any mm model's config."""

from .safe_ada_ln_zero import SafeAdaLNZero
from .safe_attention import SafeAttention
from .safe_rms_norm import SafeRMSNorm

__all__ = ['SafeAdaLNZero', 'SafeAttention', 'SafeRMSNorm']
