"""The scenarios whose verdict is still wrong, each with the reason.

A scenario that is right must not stand here: the test fails, strictly, so
that the score in the README and the table in ``limits.md`` follow.
"""

from typing import Dict

# Guarded runs that end worse than without a guard.
WORSE: Dict[str, str] = {}
# A wrong cause, culprit or advice.
WRONG: Dict[str, str] = {}
