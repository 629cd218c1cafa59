"""A process that hangs is ended with all of its children."""

import signal
import subprocess

import pytest
import ranks

# Starts a child and waits for it.
HANGS = """
import subprocess, sys
sleep = 'import time; time.sleep(600)'
child = subprocess.Popen([sys.executable, '-c', sleep])
print('started', flush=True)
child.wait()
"""


def test_no_child_outlives_the_deadline(monkeypatch):
    process = ranks.start(['-c', HANGS])
    process.stdout.readline()  # the child runs
    monkeypatch.setattr(ranks, 'DEADLINE', 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        ranks.finish(process)
    # Its output ends once no process holds the other end.
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
