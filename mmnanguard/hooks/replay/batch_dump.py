"""The content of a dump file, and the way it is written.

A dump is a dict of tensors and builtins with the schema ``SCHEMA``;
``dump_replay`` reads it.
"""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.core import GuardEvent
from mmnanguard.core.checks import is_number
from mmnanguard.numerics.base.dtype_name import dtype_name
from mmnanguard.numerics.probe.replay import Setting

from .._shared.find_guards import find_wrappers
from .._shared.versions import versions
from .fp32_modules_hook import Fp32ModulesHook
from .plain_batch import can_save, to_plain
from .window import Window
from .window_replay import settings_of

__all__ = ['Dump', 'collect', 'save_whole', 'size_of', 'weights_of']

SCHEMA = 1
Dump = Dict[str, Any]


def collect(
    runner: Runner, event: GuardEvent, window: Window
) -> Tuple[Dump, List[str], List[str]]:
    """Return the dump without the weights.

    Returns:
        The dump, and the types of the batches' objects that had to be pickled
        or are lost, as :func:`to_plain` returns them.
    """
    data = [batch.kept.data for batch in window.batches]
    batches, pickled, lost = to_plain(data)
    dump = {
        'schema': SCHEMA,
        'event': event.to_row(),
        'rank': get_rank(),
        'world_size': get_world_size(),
        'batches': batches,
        'batch_idx': [batch.batch_idx for batch in window.batches],
        'rng': [batch.rng for batch in window.batches],
        'is_exact': window.is_exact(runner),
        'iter': [batch.iter for batch in window.batches],
        'settings': plain_settings(settings_of(find_wrappers(runner), event)),
        'fp32_modules': fp32_patterns(runner),
        'runtime_info': numbers_of_hub(runner),
        'config': runner.cfg.pretty_text,
        'versions': versions(),
    }
    return dump, pickled, lost


def plain_settings(
    settings: Mapping[str, Setting],
) -> Dict[str, Dict[str, object]]:
    """Return the settings as dicts, with the names of their dtypes."""
    plain = {}
    for name, setting in settings.items():
        plain[name] = setting._asdict()
        # A dump holds tensors and builtins only, and a dtype is neither.
        if setting.dtype is not None:
            plain[name]['dtype'] = dtype_name(setting.dtype)
    return plain


def fp32_patterns(runner: Runner) -> List[str]:
    """Return the patterns of all modules that run in float32."""
    patterns: List[str] = []
    for hook in runner.hooks:
        if isinstance(hook, Fp32ModulesHook):
            patterns.extend(hook.patterns)
    return patterns


def numbers_of_hub(runner: Runner) -> Dict[str, object]:
    """Return the numbers of the message hub, where models read max_iters."""
    numbers = {}
    for key, value in runner.message_hub.runtime_info.items():
        if is_number(value):
            # A NumPy number would not load with ``weights_only=True``.
            numbers[key] = to_plain(value)[0]
    return numbers


def weights_of(model: nn.Module) -> Dict[str, Tensor]:
    """Return weights and buffers on the CPU, as this rank holds them.

    Tensors that a file cannot hold are left out.
    """
    # The names are those of the model itself, also inside DDP.
    model = getattr(model, 'module', model)
    weights = {}
    for name, value in model.state_dict().items():
        # ``get_extra_state`` may put any object there.
        if isinstance(value, Tensor) and can_save(value):
            weights[name] = value.detach().cpu()
    return weights


def size_of(content: object) -> int:
    """Return the bytes of all tensors in lists and dicts."""
    size = 0
    for leaf in tree_flatten(content)[0]:
        if isinstance(leaf, Tensor):
            size += leaf.numel() * leaf.element_size()
    return size


def save_whole(dump: Dump, path: Path, max_bytes: float) -> int:
    """Write the dump and return the size of the file.

    The file is written under another name and renamed, so that no reader sees
    half a file.

    Raises:
        OSError: If the dump is too large, or cannot be written. If the disk
            is full, PyTorch may raise a RuntimeError instead.
    """
    size = size_of(dump)
    # Refused before anything is written, or it might fill the disk.
    if size > max_bytes:
        raise OSError(
            f'{size / 2**20:.0f} MiB are more than max_megabytes='
            f'{max_bytes / 2**20:g}'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        torch.save(dump, aside)
    return path.stat().st_size
