import platform
from typing import Dict

import torch
from mmengine.version import __version__ as mmengine_version

from mmnanguard.version import __version__

__all__ = ['versions']


def versions() -> Dict[str, str]:
    """Of what a run depends on, here and now."""
    return {
        'mmnanguard': __version__,
        'mmengine': mmengine_version,
        'torch': str(torch.__version__),
        'python': platform.python_version(),
    }
