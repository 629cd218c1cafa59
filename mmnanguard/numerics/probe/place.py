"""The place in the user's code to which an operation belongs."""

import re
from pathlib import Path
from types import CodeType, FrameType
from typing import Mapping, NamedTuple, Optional, Tuple

import torch
from torch import nn

__all__ = [
    'SKIPPED',
    'Place',
    'Running',
    'find_running',
    'forward_name',
    'is_of_engine',
    'line_of_own_backward',
    'method_of',
]

# Frames to skip when looking for the user's source line.
SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
# The phase, the module's name and type, its method, the source line, and the
# forward operation whose derivative runs.
Place = Tuple[str, str, str, str, str, str]
# The code of PyTorch that runs the backward pass, and that wraps a mode.
ENGINE = torch.autograd.__file__, torch.autograd.graph.__file__
WRAPPERS = '_fn', 'inner'


class Running(NamedTuple):
    """A method of a module that is running.

    Attributes:
        name: The name of the module.
        owner: The module.
        code: The code of the method.
    """

    name: str
    owner: nn.Module
    code: CodeType


def find_running(
    frame: Optional[FrameType], names: Mapping[int, str]
) -> Tuple[Optional[Running], str]:
    """Return the innermost method of a module, and the user's innermost line.

    Frames are read instead of module hooks, because mm heads run
    ``head.loss()``, which calls no hook.

    Args:
        frame: The innermost frame.
        names: The names of the modules, by their id.

    Returns:
        The method, or None if no method of these modules is running, and the
        line, as 'head.py:12', or ''.
    """
    running: Optional[Running] = None
    source = ''
    while frame is not None and not (source and running):
        code = frame.f_code
        if not source and not code.co_filename.startswith(SKIPPED):
            source = f'{Path(code.co_filename).name}:{frame.f_lineno}'
        if running is None and code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, nn.Module) and id(owner) in names:
                running = Running(names[id(owner)], owner, code)
        frame = frame.f_back
    return running, source


def is_of_engine(frame: FrameType) -> bool:
    """Whether autograd's engine called a mode, and not code of Python."""
    while frame.f_code.co_name in WRAPPERS and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename in ENGINE


def line_of_own_backward(frame: Optional[FrameType], node: str) -> str:
    """Return the user's line in an autograd.Function's backward, or ''.

    Args:
        frame: The innermost frame.
        node: The name of the autograd node; those of C++ end with a number.
    """
    if not node.endswith('Backward'):
        return ''
    while frame is not None and frame.f_code.co_filename not in ENGINE:
        path = frame.f_code.co_filename
        if not path.startswith(SKIPPED):
            return f'{Path(path).name}:{frame.f_lineno}'
        frame = frame.f_back
    return ''


def forward_name(node: str) -> str:
    """Return the forward operation of an autograd node, as 'sqrt'."""
    name = re.sub(r'Backward\d*$', '', node.split('::')[-1])
    return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()


def method_of(owner: nn.Module, code: CodeType) -> str:
    """Return the method that runs; 'forward' for PyTorch's own modules."""
    is_user_code = not code.co_filename.startswith(SKIPPED)
    is_method = callable(getattr(type(owner), code.co_name, None))
    if is_user_code and is_method:
        return code.co_name
    # PyTorch's own modules run helpers of other names below forward.
    return 'forward'
