"""Lines of the log that show a guard's scalars only when they change.

MMEngine's ``LogProcessor`` puts every scalar of the run into each line. The
scalars that it hands to the visualizer stay complete.
"""

import re
from typing import Any, Dict, Mapping, Tuple

from mmengine.runner import Runner

from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.patches import Patches
from .run_scalars import guard_scalars

__all__ = ['ChangedScalars']

# The scalars that stay constant while all is well. The others, such as the
# factor of a clip rule, move all the time and are for dashboards.
COUNTERS = (
    'skipped',
    'routine_overflows',
    'left_out',
    'bad_samples',
    'lr_factor',
    'amp_scale',
)
GUARD_SCALAR = re.compile(r'(?:^|(?<= ))(guard/\S*): (\S+)(?:  |$)')


class ChangedScalars:
    """Replacement of ``get_log_after_iter`` with shorter lines.

    Args:
        runner: The runner.
        guards: Its guards, before the first iteration.
    """

    def __init__(
        self, runner: Runner, guards: Mapping[str, GuardProtocol]
    ) -> None:
        self._processor = runner.log_processor
        self._get_log = self._processor.get_log_after_iter
        self._tag: Mapping[str, Any] = {}
        # What is as at the start need not be said.
        self._shown: Dict[str, float] = {}
        for name, value in guard_scalars(runner.message_hub, guards).items():
            self._shown[name.replace('train/', '', 1)] = value

    def attach(self, patches: Patches) -> None:
        """Shorten the lines of the run until training ends."""
        patches.replace(self._processor, 'get_log_after_iter', self)

    def __call__(self, *args: Any, **kwargs: Any) -> Tuple[Any, str]:
        """Return all scalars for the visualizer, and the shorter line."""
        tag, line = self._get_log(*args, **kwargs)
        self._tag = tag
        # The line ends where its last scalar does.
        return tag, GUARD_SCALAR.sub(self._keep_if_changed, line).rstrip()

    def _keep_if_changed(self, match: 're.Match[str]') -> str:
        """Return the text of a scalar, or '' if it is as it was."""
        name = match.group(1)
        # The text has few digits. With a hierarchy, names have a prefix.
        value = self._tag.get(name, self._tag.get(f'train/{name}'))
        is_counter = name.rpartition('/')[2] in COUNTERS
        if not is_counter or value == self._shown.get(name, 0):
            return ''
        self._shown[name] = value
        return match.group(0)
