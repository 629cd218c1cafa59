"""A run that is killed while it writes a file."""

import builtins
import io
import os
import re
import signal
import sys

from toys import guard_hooks, make_runner, wrapper

plain_open = builtins.open
TIMES = {}


class Dying:
    """A file that writes half of its first content, then kills the process."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def main(work_dir, pattern, time, is_audited):
    """Train, and die when a file whose path matches is opened to write for the
    n-th time.
    """

    def dying_open(path, mode='r', *args, **kwargs):
        file = plain_open(path, mode, *args, **kwargs)
        if 'w' in mode and re.search(pattern, str(path)):
            TIMES[pattern] = TIMES.get(pattern, 0) + 1
            if TIMES[pattern] == int(time):
                return Dying(file)
        return file

    hooks = guard_hooks()
    hooks['checkpoint'] = dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=4,
        max_keep_ckpts=1,
        published_keys=['meta', 'state_dict'],
    )
    if is_audited == 'True':
        hooks['audit'] = dict(type='mmnanguard.StateAuditHook')
    runner = make_runner(
        work_dir, wrapper(), default_hooks=hooks, max_iters=12
    )
    builtins.open = io.open = dying_open  # the latter is pathlib's
    runner.train()


if __name__ == '__main__':
    main(*sys.argv[1:])
