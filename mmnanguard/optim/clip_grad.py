from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Tuple, Union

from mmengine.optim import OptimWrapper
from torch import Tensor

from mmnanguard.core import GuardConfigError, NoClip, NormClip, check_keys
from mmnanguard.numerics import ValueClip

__all__ = ['UserClip', 'build_clip']

WHERE = 'optim_wrapper.clip_grad'
# error_if_nonfinite and foreach are accepted and change nothing: no
# non-finite gradient reaches the clip, and multi-tensor kernels are used.
KEYS = {
    'norm': ('max_norm', 'norm_type', 'error_if_nonfinite', 'foreach'),
    'value': ('clip_value', 'foreach'),
}


def build_clip(
    config: Optional[Mapping[str, Any]],
) -> Tuple[Union[NoClip, NormClip], Optional[Callable]]:
    """Read MMEngine's ``clip_grad`` key, with MMEngine's meaning.

    Returns:
        A rule of numbers (norm in, coefficient out) and a rule of tensors,
        None where there is none.

    Raises:
        GuardConfigError: For a key or value that cannot work.
    """
    if config is None:
        return NoClip(), None
    if not isinstance(config, Mapping) or not config:
        raise GuardConfigError(
            f'{WHERE} is {config!r}: it must be None or a dict such as '
            'dict(max_norm=35, norm_type=2).'
        )
    kind = config.get('type', 'norm')
    if kind not in KEYS:
        raise GuardConfigError(
            f"{WHERE}.type is {kind!r}: it must be 'norm' or 'value'."
        )
    if kind == 'norm' and 'clip_value' in config:
        raise GuardConfigError(
            f"{WHERE} has clip_value but no type='value': write "
            f"clip_grad=dict(type='value', clip_value=...)."
        )
    values = {key: value for key, value in config.items() if key != 'type'}
    check_keys(values, KEYS[kind], WHERE)
    limit = values.get('max_norm' if kind == 'norm' else 'clip_value')
    if not (isinstance(limit, (int, float)) and limit > 0):
        raise GuardConfigError(
            f'{WHERE}: {KEYS[kind][0]} is {limit!r}, it must be a number '
            'above 0.'
        )
    if kind == 'value':
        return NoClip(), ValueClip(float(limit))
    try:
        norm_type = float(values.get('norm_type', 2))
    except (TypeError, ValueError):
        norm_type = 0.0
    if not norm_type > 0:
        raise GuardConfigError(
            f'{WHERE}.norm_type is {values["norm_type"]!r}: it must be above '
            "0; 'inf' is the largest absolute element."
        )
    return NormClip(float(limit), norm_type), None


@dataclass(frozen=True)
class UserClip:
    """A subclass's own ``_clip_grad``, at the place of MMEngine's.

    Attributes:
        wrapper: The instance of the subclass.
    """

    wrapper: OptimWrapper

    def __call__(self, grads: List[Tensor]) -> None:
        self.wrapper._clip_grad()

    def __str__(self) -> str:
        return f'{type(self.wrapper).__name__}._clip_grad'
