"""The base of all clip rules, and the two rules that remember nothing.

A rule turns the norm of all gradients into one coefficient. A user's own rule
is a frozen dataclass that inherits from ``ClipRule``: plain fields are keys of
its config, fields with ``metadata=ClipRule.STATE`` are what it remembers.
"""

from dataclasses import MISSING, Field, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Dict, List, Mapping

from ..checks import is_number
from ..errors import NanGuardError

__all__ = ['ClipRule', 'NoClip', 'NormClip', 'config_keys']


def config_keys(rule: Any) -> List[str]:
    """Return the keys that the config of a rule's class may have."""
    return [key.name for key in fields(rule) if not is_state(key)]


def is_state(rule_field: 'Field[Any]') -> bool:
    """Whether a field of a rule is state, and no key of its config."""
    return bool(rule_field.metadata.get('is_state'))


class ClipRule:
    """The base of clip rules: a gradient norm in, a coefficient out.

    A rule is a frozen dataclass. It never changes: each commit replaces it by
    the rule that ``after`` returns, so that a rejected update leaves no trace
    in it. Only ``__call__`` has to be written; ``after`` too if the rule
    remembers something. Saving and restoring work by themselves for state of
    Python's own types.

    Attributes:
        norm_type: Order of the norm that the rule is given: positive, or inf.
            A rule that declares it as a field lets the config choose it.
        STATE: Metadata of a dataclass field that is state:
            ``mean: float = field(default=0.0, metadata=ClipRule.STATE)``. The
            field is no key of the config, changes by ``dataclasses.replace``
            in ``after``, is saved with each checkpoint and resumed.
    """

    norm_type: float = 2.0
    STATE: ClassVar[Mapping[str, bool]] = MappingProxyType({'is_state': True})

    def __call__(self, norm: float) -> float:
        """Return the factor for all gradients, above 0 and at most 1.

        Called on each update that will be committed, with the same norm on
        all ranks.

        Args:
            norm: Finite, unscaled, of the gradients before clipping; may be 0.
        """
        raise NotImplementedError

    def after(self, norm: float) -> 'ClipRule':
        """Return the rule for the next update.

        Args:
            norm: The norm of the update that was just committed. Norms of
                rejected updates never get here.
        """
        return self

    def to_dict(self) -> Dict[str, Any]:
        """Return the type and the state, in Python's own types."""
        saved = {'type': type(self).__name__}
        return {**saved, **{key: getattr(self, key) for key in defaults(self)}}

    def with_state(self, saved: Mapping[str, Any]) -> 'ClipRule':
        """Return this rule with a saved state.

        Args:
            saved: The result of ``to_dict``. State that is missing in it
                begins with its default, so {} means a fresh rule.
        """
        state = {
            key: saved.get(key, default)
            for key, default in defaults(self).items()
        }
        return replace(self, **state) if state else self  # type: ignore

    def coefficient(self, norm: float) -> float:
        """Return the rule's coefficient for a norm, checked.

        Raises:
            NanGuardError: If it is not a number above 0 and at most 1.
        """
        coef = self(norm)
        if is_number(coef) and 0 < coef <= 1:
            return coef
        raise NanGuardError(
            f'optim_wrapper.clip_grad: {type(self).__name__} returns {coef!r} '
            f'for a gradient norm of {norm:g}: a coefficient must be a number '
            'above 0 and at most 1 (1: nothing is clipped).'
        )

    def __str__(self) -> str:
        keys = [f'{key}={getattr(self, key)}' for key in config_keys(self)]
        return ' '.join(['clip_grad', type(self).__name__, *keys])


def defaults(rule: ClipRule) -> Dict[str, Any]:
    """Return the state of a rule before its first commit."""
    state: Dict[str, Any] = {}
    for key in fields(rule):  # type: ignore[arg-type]
        if not is_state(key):
            continue
        if key.default_factory is not MISSING:
            state[key.name] = key.default_factory()
        else:
            state[key.name] = key.default
    return state


@dataclass(frozen=True)
class NoClip(ClipRule):
    """Gradients pass as they are."""

    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        return 1.0

    def __str__(self) -> str:
        return 'no clipping'


@dataclass(frozen=True)
class NormClip(ClipRule):
    """The coefficient of ``torch.nn.utils.clip_grad_norm_``.

    Attributes:
        max_norm: Largest norm of all gradients together, inclusive.
        norm_type: Positive, or inf for the largest absolute element.
    """

    max_norm: float
    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        # The 1e-6 is PyTorch's own, kept so that results agree with it.
        return min(1.0, self.max_norm / (norm + 1e-6))

    def __str__(self) -> str:
        return f'clip_grad max_norm={self.max_norm:g}'
