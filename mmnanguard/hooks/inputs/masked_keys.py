"""The keys of inputs that are not finite on purpose.

Targets of 3D detection hold NaN where nothing was measured (the velocities
of nuScenes), and the loss leaves these elements out. Whether a model does so
cannot be seen in a batch, but in its updates: with the key's NaN among the
inputs, loss and gradients are finite all the same.
"""

import math
from collections import deque
from typing import Deque, Dict, FrozenSet, List, Mapping, Sequence, Set

from mmnanguard.core import GuardEvent

from .input_check import InputFlags, bad_keys

__all__ = ['MaskedKeys', 'masked_story']

# A single update may be finite by chance, for example because the sample's
# part of a loss had no weight.
NUM_PROOFS = 3
# Committed windows whose flags are kept on the device.
NUM_KEPT = 20


class MaskedKeys:
    """Learns which keys hold NaN or Inf in updates that are finite.

    Attributes:
        proven: The keys that the model masks.
    """

    def __init__(self) -> None:
        self.proven: FrozenSet[str] = frozenset()
        self._num_proofs: Dict[str, int] = {}
        self._committed: Deque[List[InputFlags]] = deque(maxlen=NUM_KEPT)

    def note_commit(self, checks: List[InputFlags]) -> None:
        """Keep the flags of a committed update; no sync."""
        self._committed.append(checks)

    def note_rejected(
        self, event: GuardEvent, keys: Mapping[str, Sequence[str]]
    ) -> FrozenSet[str]:
        """Learn from an update that was rejected for its inputs alone.

        Args:
            event: The event of the update, which all ranks share.
            keys: The keys that were not finite on any rank.

        Returns:
            The keys that are proven from now on.
        """
        # Gradients are averaged over ranks, so that all ranks conclude alike.
        if not math.isfinite(event.grad_norm):
            return frozenset()
        new: Set[str] = set()
        for key in keys:
            count = self._num_proofs.get(key, 0) + 1
            self._num_proofs[key] = count
            if count == NUM_PROOFS:
                new.add(key)
        self.proven |= new
        return frozenset(new)

    def seen_in_commits(self) -> Set[str]:
        """Return this rank's keys that committed updates had; syncs."""
        checks: List[InputFlags] = []
        for window in self._committed:
            checks.extend(window)
        return bad_keys(checks)


def masked_story(keys: List[str], is_asked: bool) -> str:
    """Return the message that a model masks keys, and what to change.

    Args:
        keys: The keys.
        is_asked: Whether the user has named the keys to check.
    """
    future = (
        'FROM NOW ON IT REJECTS NO UPDATE FOR THEM; to keep rejecting, set '
        f'keys={keys} of InputGuardHook'
    )
    if is_asked:
        future = (
            'InputGuardHook goes on rejecting, because its keys ask for it. '
            "Leave these parts out of keys, or set action='explain'"
        )
    return (
        'mmnanguard: THE MODEL MASKS NAN OR INF IN THE INPUT '
        f'{", ".join(keys)}: loss and gradients of {NUM_PROOFS} rejected '
        f'updates were finite beside it. {future} (said once)'
    )
