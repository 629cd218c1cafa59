"""The weights with which a dumped window is run again."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
from torch import nn

from mmnanguard.core import NanGuardError
from mmnanguard.numerics import load_plain
from mmnanguard.numerics.checkpoints.checkpoint_file import reason_of
from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    trained_and_averaged,
)
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .batch_dump import Dump

__all__ = ['load_file', 'load_weights', 'one_line']


def load_weights(
    model: nn.Module, dump: Dump, path: Optional[str]
) -> List[str]:
    """Load the weights of a checkpoint, or of the dump.

    Args:
        model: The model of the replay.
        dump: The content of the dump file.
        path: The checkpoint; None for the weights in the dump.

    Returns:
        A doubt if the weights are not those from before the update.

    Raises:
        NanGuardError: If there are no weights, or they do not fit the model.
    """
    event = dump['event']
    saved = load_file(path, 'checkpoint') if path else {}
    state = saved
    # A file may also hold the bare state dict.
    if isinstance(saved, dict):
        state = saved.get('state_dict', saved)
    if not isinstance(state, dict):
        raise NanGuardError(
            f'{path} holds a {type(state).__name__}, where a checkpoint has '
            'a dict of tensors by name. Give one that training has saved.'
        )
    state = state or dump.get('weights')
    if not state:
        raise NanGuardError(
            'The dump holds no weights. Give --checkpoint, best the last one '
            f'before iteration {event["iter"]}; or dump with '
            'BatchDumpHook(save_weights=True).'
        )
    # EMAHook saves the averaged weights as those of the model.
    if EMA_KEY in saved:
        state, _ = trained_and_averaged(state, saved[EMA_KEY])
    load_state(model, state, path or 'The dump')
    # The weights in the dump are those from before the update. A checkpoint
    # has them only if it was saved just before the window.
    before = event['iter'] - len(dump['batches'])
    saved_iter = saved.get('meta', {}).get('iter')
    if not path or saved_iter == before:
        return []
    return [
        f'{path} is of iteration {saved_iter}, the update began after {before}'
    ]


def load_state(
    model: nn.Module, state: Dict[str, torch.Tensor], source: str
) -> None:
    """Load a state dict into a model.

    Tensors that the model does not have are ignored: a checkpoint may hold
    more than the model.

    Args:
        model: The model of the replay.
        state: The state dict.
        source: The file that the state was read from, for the error.

    Raises:
        NanGuardError: If a tensor is missing or has another shape.
    """
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        # PyTorch's message has one line per tensor.
        raise NanGuardError(
            f'{source} does not fit the model '
            f'({one_line(error)}). Is it of this config?'
        ) from error
    if missing:
        raise NanGuardError(
            f'{source} lacks {len(missing)} tensors of the model, '
            f'such as {missing[0]}. Is it of this config?'
        )


def load_file(path: Union[str, Path], kind: str) -> Any:
    """Load a file without running any code of it.

    Args:
        path: The file.
        kind: A noun for its expected content, used in the error.

    Raises:
        NanGuardError: If the file cannot be read.
    """
    allow_mmengine_checkpoints()
    try:
        return load_plain(path)
    except Exception as error:
        # OSError, UnpicklingError, RuntimeError and others: the error that
        # torch.load raises depends on how the file is broken.
        raise NanGuardError(
            f'{path} cannot be read as a {kind}: {reason_of(error)}'
        ) from error


def one_line(error: Exception) -> str:
    """Return the text of an error as one line."""
    return ' '.join(str(error).split())
