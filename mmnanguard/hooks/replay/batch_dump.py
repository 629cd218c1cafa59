from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.core import GuardEvent
from mmnanguard.core.checks import is_number
from mmnanguard.numerics.base.dtype_name import dtype_name

from .._shared.find_guards import find_wrappers
from .._shared.versions import versions
from .fp32_modules_hook import Fp32ModulesHook
from .plain_batch import to_plain
from .window import Window
from .window_replay import settings_of

__all__ = ['collect', 'save_whole', 'weights_of']

SCHEMA = 1


def collect(
    runner: Runner, event: GuardEvent, window: Window
) -> Tuple[Dict[str, Any], List[str], List[str]]:
    """The dump, but for the weights; and as :func:`to_plain`."""
    batches, pickled, lost = to_plain([b.kept.data for b in window.batches])
    settings = settings_of(find_wrappers(runner), event)
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
        'settings': {
            name: dict(
                setting._asdict(),
                dtype=setting.dtype and dtype_name(setting.dtype),
            )
            for name, setting in settings.items()
        },
        'fp32_modules': [
            pattern
            for hook in runner.hooks
            if isinstance(hook, Fp32ModulesHook)
            for pattern in hook.patterns
        ],
        'runtime_info': {  # of the message hub, where models read max_iters
            key: to_plain(value)[0]  # may be a number of numpy
            for key, value in runner.message_hub.runtime_info.items()
            if is_number(value)
        },
        'config': runner.cfg.pretty_text,
        'versions': versions(),
    }
    return dump, pickled, lost


def weights_of(model: nn.Module) -> Dict[str, Tensor]:
    """Weights and buffers; of this rank."""
    model = getattr(model, 'module', model)
    return {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def save_whole(dump: Dict[str, Any], path: Path, max_bytes: float) -> int:
    """Write beside and rename, so that no reader sees half a file.

    Raises:
        OSError: If it is too large, or cannot be written; for a disk that
            is full PyTorch also raises a RuntimeError.
    """
    size = sum(
        leaf.numel() * leaf.element_size()
        for leaf in tree_flatten(dump)[0]
        if isinstance(leaf, Tensor)
    )
    if size > max_bytes:
        raise OSError(
            f'{size / 2**20:.0f} MiB are more than max_megabytes='
            f'{max_bytes / 2**20:g}'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        torch.save(dump, aside)
    return path.stat().st_size
