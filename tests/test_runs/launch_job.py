"""Run launchers such as tools/train.py one after another.

Each launcher runs in a fork of this process, which has imported everything: an
import takes longer than a small run.

The script reads JSON from standard input: `imports` has names of modules, and
`runs` has the words of a command line by name, where * in a path is expanded.
It prints, by name, the exit status, the output and the seconds of CPU time.
"""

import gc
import glob
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback


def run(command):
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(start(*command))
        _, status, used = os.wait4(pid, 0)
        output.seek(0)
        return dict(
            status=os.waitstatus_to_exitcode(status),
            told=output.read().decode(),
            seconds=round(used.ru_utime + used.ru_stime, 2),
        )


def start(script, *args):
    """Run a script as Python would and return its exit status."""
    status = 0
    sys.argv = [script]
    for arg in args:
        sys.argv += glob.glob(arg) or [arg]
    sys.path[0] = os.path.dirname(script)
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as done:
        status = done.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main():
    job = json.load(sys.stdin)
    for name in job['imports']:
        importlib.import_module(name)
    gc.freeze()  # or each child's collections would copy the whole memory
    print(json.dumps({name: run(job['runs'][name]) for name in job['runs']}))


if __name__ == '__main__':
    main()
