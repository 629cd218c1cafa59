"""The limits of the rules, as a user sets them."""

from dataclasses import dataclass
from typing import Optional, Union

from ..checks import check_value, is_count, is_finite_number

__all__ = ['LEAST_SCALED_GRAD', 'StabilityLimits']

# Of the largest one in float16: below it, others vanish.
LEAST_SCALED_GRAD = 2.0**-12
# The highest value of each limit, inclusive. In float16, outputs of 1 have a
# headroom of 16 bits, and no gradient is above 65504.
HIGHEST = {
    'headroom': 16,
    'attention_logits': None,
    'underflow': 65504,
    'diverging': 1,
    'operands': 1,
}


@dataclass(frozen=True)
class StabilityLimits:
    """The limits beyond which the monitor warns; None switches a rule off.

    The defaults are from small runs that went bad and small runs that did
    not; the section on limits of docs/en/stability.md says how they were
    found. An alert means that a number is far outside of what runs that learn
    look like.

    The attributes are arguments of ``StabilityMonitorHook``, which describes
    them.
    """

    headroom: Optional[float] = 4.0
    update_ratio: Union[str, float, None] = 'auto'
    attention_logits: Optional[float] = 100.0
    underflow: Optional[float] = LEAST_SCALED_GRAD
    scale_falls: Optional[int] = 3
    diverging: Optional[float] = 0.2
    operands: Optional[float] = 1e-9

    def __post_init__(self) -> None:
        where = 'StabilityMonitorHook.{}'.format
        for name, highest in HIGHEST.items():
            value = getattr(self, name)
            is_positive = is_finite_number(value) and value > 0
            allowed = 'a number above 0'
            if highest is not None:
                is_positive = is_positive and value <= highest
                allowed += f' and at most {highest}'
            check_value(
                value is None or is_positive,
                where(name),
                value,
                f'{allowed}, or None',
            )
        ratio = self.update_ratio
        is_number = is_finite_number(ratio) and float(str(ratio)) > 0
        check_value(
            ratio is None or ratio == 'auto' or is_number,
            where('update_ratio'),
            ratio,
            "a number above 0, 'auto' or None",
        )
        falls = self.scale_falls
        check_value(
            falls is None or is_count(falls, least=1),
            where('scale_falls'),
            falls,
            'an integer above 0, or None',
        )
