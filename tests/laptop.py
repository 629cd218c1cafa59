"""A Python without torch and MMEngine, as on the laptop of someone who reads
the results of a cluster.
"""

import sys

HEAVY = ('torch', 'mmengine', 'mmcv', 'numpy')
BARE = """
import importlib.util, runpy, sys

class Refuse:
    def find_spec(self, name, *args):
        if name.split('.')[0] in {refused}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name in {refused} else find(name, *args))
sys.argv = {command}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def laptop(*command, without=()):
    """Return a command that runs this script with these arguments where the
    training packages are missing.
    """
    code = BARE.format(
        refused=(*HEAVY, *without), command=[str(part) for part in command]
    )
    return [sys.executable, '-c', code]
