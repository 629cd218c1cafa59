"""The versions of the software that a run depends on."""

import platform
from typing import Dict

import torch
from mmengine.version import __version__ as mmengine_version

from mmnanguard.version import __version__

__all__ = ['versions']


def versions() -> Dict[str, str]:
    """Return the versions in this process, by the name of the software."""
    return {
        'mmnanguard': __version__,
        'mmengine': mmengine_version,
        # `TorchVersion` is a subclass of str that `weights_only` refuses.
        'torch': str(torch.__version__),
        'python': platform.python_version(),
    }
