"""The role in which ``BadSamplesHook`` finds a validating transform."""

from typing import Dict, Protocol

__all__ = ['SampleValidator']


class Record(Protocol):
    """The bad samples of all worker processes of this rank."""

    def read(self) -> Dict[str, str]:
        """Return the problem of each bad sample, by the sample's name."""


class SampleValidator:
    """Base of ``ValidateSample`` and of a user's subclasses of it.

    Datasets and hooks do not import one another, so the role stands here.

    Attributes:
        action: The action on a bad sample: 'drop', 'raise' or 'tell'.
        record: The bad samples so far.
    """

    action: str
    record: Record
