"""The base of all clip rules, and the two rules that remember nothing.

A rule turns the norm of all gradients into one coefficient. A rule that a user
writes is a frozen dataclass that inherits from ``ClipRule``: its plain fields
are keys of its config, and its fields with ``metadata=ClipRule.STATE`` are the
state that the rule remembers.
"""

from dataclasses import MISSING, Field, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Dict, List, Mapping

from ..checks import is_number
from ..errors import NanGuardError

__all__ = ['ClipRule', 'NoClip', 'NormClip', 'config_keys']


def config_keys(rule: object) -> List[str]:
    """Return the keys that the config of a rule may have.

    Args:
        rule: A rule or its class, which must be a dataclass.
    """
    return [
        rule_field.name
        for rule_field in fields(rule)  # type: ignore[arg-type]
        if not is_state(rule_field)
    ]


def is_state(rule_field: 'Field[object]') -> bool:
    """Whether a field of a rule is state, and no key of its config."""
    return bool(rule_field.metadata.get('is_state'))


# Only subclasses are dataclasses: if the base had a field with a default, all
# fields of a rule would need defaults (keyword-only fields need Python 3.10).
class ClipRule:
    """The base of clip rules: a gradient norm in, a coefficient out.

    A rule is a frozen dataclass. It never changes: each commit replaces it by
    the rule that ``after`` returns, so that a rejected update leaves no trace
    in it. A subclass must define ``__call__``, and ``after`` if the rule
    remembers something. State of Python's own types is saved and restored
    without code in the subclass.

    Attributes:
        norm_type: Order of the norm that the rule is called with: positive, or
            inf. If a rule declares it as a field, the config can choose it.
        STATE: Metadata of a dataclass field that is state:
            ``mean: float = field(default=0.0, metadata=ClipRule.STATE)``. The
            field is no key of the config. ``after`` changes it with
            ``dataclasses.replace``. It is saved with each checkpoint and
            resumed.
    """

    norm_type: float = 2.0
    # Read-only, because all fields of all rules share this mapping.
    STATE: ClassVar[Mapping[str, bool]] = MappingProxyType({'is_state': True})

    def __call__(self, norm: float) -> float:
        """Return the factor for all gradients, above 0 and at most 1.

        The guard calls the rule for each update that it is about to commit,
        with an equal norm on all ranks.

        Args:
            norm: The norm of the gradients before clipping, unscaled. It is
                finite and may be 0.
        """
        raise NotImplementedError

    def after(self, norm: float) -> 'ClipRule':
        """Return the rule for the next update.

        Args:
            norm: The norm of the update that was just committed. This method
                is never called for a rejected update.
        """
        return self

    def to_dict(self) -> Dict[str, object]:
        """Return the type and the state, in Python's own types."""
        # The type, so that a resumed run does not read the state of another
        # rule.
        saved: Dict[str, object] = {'type': type(self).__name__}
        for key in defaults(self):
            saved[key] = getattr(self, key)
        return saved

    def with_state(self, saved: Mapping[str, Any]) -> 'ClipRule':
        """Return this rule with a saved state.

        Args:
            saved: The result of ``to_dict``. State that is missing in it
                begins with its default, so {} means a fresh rule.
        """
        # Only state is read: the config has precedence over a checkpoint.
        state = defaults(self)
        for key in state:
            state[key] = saved.get(key, state[key])
        if not state:
            return self
        return replace(self, **state)  # type: ignore[type-var]

    def coefficient(self, norm: float) -> float:
        """Return the rule's coefficient for a norm, checked.

        Raises:
            NanGuardError: If the coefficient is not a number above 0 and at
                most 1.
        """
        # Checked at each update: a rule may fail late, and a NaN here would
        # enter all weights.
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


def defaults(rule: ClipRule) -> Dict[str, object]:
    """Return the state of a rule before its first commit."""
    state: Dict[str, object] = {}
    for rule_field in fields(rule):  # type: ignore[arg-type]
        if not is_state(rule_field):
            continue
        if rule_field.default_factory is not MISSING:
            state[rule_field.name] = rule_field.default_factory()
        else:
            state[rule_field.name] = rule_field.default
    return state


@dataclass(frozen=True)
class NoClip(ClipRule):
    """The rule that changes no gradient."""

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
