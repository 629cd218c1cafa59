"""Run a job as one of several ranks, and end without finalizing Python.

Finalization is not safe in PyTorch: a thread of gloo that drops a tensor waits
for an interpreter that is gone, and C++ aborts the process or it hangs.
"""

import atexit
import os
import runpy
import sys
import traceback

status = 0
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as ended:
    status = ended.code
    if not isinstance(status, int):
        print(status or '', file=sys.stderr)
        status = int(status is not None)
except BaseException:
    traceback.print_exc()
    status = 1
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
