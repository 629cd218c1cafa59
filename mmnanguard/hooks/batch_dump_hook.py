import os
import platform
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import mmengine
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard.core import GuardConfigError, GuardEvent
from mmnanguard.numerics import read_rng
from mmnanguard.registry import HOOKS
from mmnanguard.version import __version__

from .batch_keeper import BatchKeeper, KeptBatch
from .find_guards import find_guards, find_wrappers
from .plain_batch import to_plain

__all__ = ['BatchDumpHook']

FOLDER = 'nanguard/dumps'


@HOOKS.register_module()
class BatchDumpHook(Hook):
    """Writes all that it takes to run a rejected update again elsewhere, to
    ``<runner.log_dir>/nanguard/dumps/iter_<iteration>_rank<rank>.pt``.

    Of each rank on which the update went bad: the window's batches as the
    data loader gave them, random states, the event, the config, versions,
    and by option the weights. Loads with ``weights_only=True``; what cannot
    be written that way is named in the log. A file appears whole or not at
    all, and a disk that is full costs the dump, not the run.

    Args:
        max_dumps: In this process, on each rank.
        max_megabytes: Of one file; a larger one is not kept.
        save_weights: Also the model's weights and buffers, as they were.
        overflows: Also of routine overflows of the loss scale.

    Raises:
        GuardConfigError: If a limit is no positive number.
    """

    priority = 'LOWEST'  # the last word before the batch is trained on

    def __init__(
        self,
        max_dumps: int = 5,
        max_megabytes: float = 1024,
        save_weights: bool = False,
        overflows: bool = False,
    ) -> None:
        for name, value in (
            ('max_dumps', max_dumps),
            ('max_megabytes', max_megabytes),
        ):
            if not (isinstance(value, (int, float)) and value > 0):
                raise GuardConfigError(
                    f'BatchDumpHook.{name} is {value!r}: it must be a number '
                    'above 0; to switch dumps off, leave the hook out.'
                )
        self._num_left = max_dumps
        self._max_bytes = max_megabytes * 2**20
        self._save_weights = save_weights
        self._overflows = overflows
        self._keeper = BatchKeeper()
        self._window: List[Tuple[int, KeptBatch, Dict[str, Any]]] = []

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        if self._num_left == 0:
            return
        if not any(guard.losses for guard in find_guards(runner).values()):
            self._window = []
        kept = self._keeper.keep(data_batch)
        self._window.append((batch_idx, kept, read_rng()))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        if self._window:
            self._keeper.compare(data_batch, self._window[-1][1])

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        if event.is_routine and not self._overflows:
            return
        if get_rank() not in event.ranks or self._num_left == 0:
            return
        self._num_left -= 1
        name = f'iter_{event.iter}_rank{get_rank()}.pt'
        path = Path(runner.log_dir, FOLDER, name)
        dump, lost = self._collect(runner, event)
        if lost:
            runner.logger.warning(
                f'mmnanguard: {path} keeps only the text of '
                f'{", ".join(lost)}, which no file could hold that loads '
                'with weights_only=True'
            )
        try:
            size = save_whole(dump, path, self._max_bytes)
        except OSError as error:
            runner.logger.error(
                f'mmnanguard: cannot write {path} ({error}); training goes '
                'on, this dump is lost'
            )
            return
        runner.logger.warning(
            f'mmnanguard: dumped to {path} ({size / 2**20:.1f} MiB)'
        )
        runner.call_hook(
            'after_guard_row',
            row={
                'schema': 1,
                'kind': 'dump',
                'id': event.id,
                'rank': get_rank(),
                'path': str(path),
                'bytes': size,
            },
        )

    def _collect(
        self, runner: Runner, event: GuardEvent
    ) -> Tuple[Dict[str, Any], List[str]]:
        batches, lost = to_plain([kept.data for _, kept, _ in self._window])
        wrapper = find_wrappers(runner)[event.optimizer]
        dtype = getattr(wrapper, 'cast_dtype', None)
        model = getattr(runner.model, 'module', runner.model)
        dump = {
            'schema': 1,
            'event': event.to_row(),
            'batches': batches,
            'batch_idx': [index for index, _, _ in self._window],
            'rng': [rng for _, _, rng in self._window],
            'is_exact': all(k.is_exact for _, k, _ in self._window),
            'dtype': dtype and str(dtype).replace('torch.', ''),
            'loss_scale': (event.loss_scale or {'before': 1.0})['before'],
            'accumulation': wrapper._accumulative_counts,
            'config': runner.cfg.pretty_text,
            'versions': {
                'mmnanguard': __version__,
                'mmengine': mmengine.__version__,
                'torch': str(torch.__version__),
                'python': platform.python_version(),
            },
        }
        if self._save_weights:
            dump['weights'] = {
                name: tensor.detach().cpu()
                for name, tensor in model.state_dict().items()
                if isinstance(tensor, torch.Tensor)
            }
        return dump, lost


def save_whole(dump: Dict[str, Any], path: Path, max_bytes: float) -> int:
    """Write beside and rename, so that no reader sees half a file.

    Raises:
        OSError: If it cannot be written, or is too large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix('.tmp')
    try:
        try:
            torch.save(dump, aside)
        except RuntimeError as error:  # PyTorch's, for a disk that is full
            raise OSError(str(error)) from error
        size = aside.stat().st_size
        if size > max_bytes:
            raise OSError(
                f'{size / 2**20:.0f} MiB are more than max_megabytes='
                f'{max_bytes / 2**20:g}'
            )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return size
