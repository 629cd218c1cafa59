"""Lets torchvision be imported beside a torch that it was not built for.

No CPU build of torchvision exists for every CPU build of torch, and a CUDA
build cannot load its compiled ops there. Its Python side, all that
mmpretrain wants, needs two of them to be declared at import. Python imports
this file at its start when this folder is on PYTHONPATH.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

try:
    folder = Path(find_spec('torchvision').origin).parent
    torch.ops.load_library(str(folder / '_C.so'))
except OSError:
    # The library must stay alive: its declarations go with it.
    ops = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        ops.define(
            f'{name}(Tensor dets, Tensor scores, '
            'float iou_threshold) -> Tensor'
        )
