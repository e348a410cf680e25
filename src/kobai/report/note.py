"""What a rule says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Note:
    """One observation.

    Attributes:
        tone: ``good``, ``plain`` or ``warn``.
        text: The sentence.
        because: The number and the threshold that made the rule speak.
    """

    tone: str
    text: str
    because: str
