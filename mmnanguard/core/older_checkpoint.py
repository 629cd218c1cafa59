"""The checkpoint from which a rejected update can be run again."""

import re
from pathlib import Path
from typing import List, Optional, Tuple

__all__ = ['older_checkpoint']

# The names that MMEngine gives: iter_2000.pth, epoch_3.pth, and
# best_coco_bbox_mAP_epoch_3.pth.
NAME = re.compile(r'(?:.*_)?(iter|epoch)_(\d+)\.pth')


def older_checkpoint(
    work_dir: Path,
    iteration: int,
    epoch: int = 1,
    batch_idx: Optional[int] = None,
) -> Optional[str]:
    """Return the newest checkpoint from before an iteration; None if none.

    The names of the files decide: without PyTorch, nothing else says how old
    a checkpoint is.

    Args:
        work_dir: The folder of the checkpoints.
        iteration: The iteration, from 1.
        epoch: The epoch of the iteration, from 1.
        batch_idx: The number of the batch in its epoch, from 0. None if it is
            not known; then all checkpoints named by an epoch count as older
            than those named by an iteration.
    """
    per_epoch = 0.0
    if batch_idx is not None and epoch > 1:
        per_epoch = (iteration - 1 - batch_idx) / (epoch - 1)
    older: List[Tuple[float, str]] = []
    for path in work_dir.glob('*.pth'):
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        unit, number = match[1], int(match[2])
        # A checkpoint of iteration 9 holds the weights before iteration 10.
        if unit == 'iter' and number < iteration:
            older.append((number, str(path)))
        elif unit == 'epoch' and number < epoch:
            older.append((number * per_epoch, str(path)))
    if not older:
        return None
    return max(older)[1]
