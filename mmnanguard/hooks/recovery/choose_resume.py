"""The choice of the checkpoint to resume from, before MMEngine loads it."""

import logging
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Optional, Set, Tuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.core.launch import tool_command
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    CheckpointFile,
    iteration_of,
)
from mmnanguard.numerics.checkpoints.find_clean import (
    find_newest_clean,
    read_head,
    scan_known,
)
from mmnanguard.numerics.checkpoints.scan import scan_checkpoint
from mmnanguard.numerics.update.blame import plain_name
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .kept_state import named_tensors
from .lineage import Lineage, is_earlier
from .pointers import LAST, LAST_CLEAN, read_pointer

__all__ = [
    'choose_resume',
    'find_clean_beside',
    'names_by_design',
    'resume_from_clean',
]


def choose_resume(
    work_dir: str, by_design: Collection[str] = ()
) -> Tuple[Optional[str], str]:
    """Choose the newest clean checkpoint if MMEngine's choice is bad.

    Reads the newest checkpoint, and older ones only if that is bad. The run
    need not have been guarded. Call it before training.

    Args:
        work_dir: The folder with MMEngine's pointer 'last_checkpoint'.
        by_design: The names of the model's tensors that may hold NaN or Inf.

    Returns:
        The path of the newest clean checkpoint of the same run if the newest
        is bad, unreadable or missing, else None, which leaves the choice to
        MMEngine; and a message for the user, which may be empty.
    """
    allow_mmengine_checkpoints()
    last = read_pointer(work_dir, LAST)
    last_clean = read_pointer(work_dir, LAST_CLEAN)
    # Scans read local files only, but a pointer may name a file of another
    # backend.
    if not all(map(is_local, [last or '', last_clean or ''])):
        return None, ''
    story = f'{LAST} names no checkpoint'
    if last is not None:
        # A folder of parts (DeepSpeed), which MMEngine's strategy loads.
        if Path(last).is_dir():
            return None, ''
        newest = scan_known(Path(last), by_design)
        if is_clean_alone(newest):
            return None, ''
        story = f'the newest checkpoint, {last}, is {words_on(newest)}'
    elif last_clean is None:
        # Without any pointer, MMEngine begins a new run.
        return None, ''
    clean = find_clean_beside(work_dir, last, by_design)
    if clean is None:
        command = tool_command('scan_checkpoints', work_dir)
        return None, (
            f'{story}, and no other is known to be clean; {command} looks at '
            'all'
        )
    # Its masks are those of an older file. A pointer holds an absolute path.
    if last is not None and Path(clean).resolve() == Path(last).resolve():
        return None, ''
    return clean, f'{story}: resuming from the last clean one, {clean}'


def find_clean_beside(
    work_dir: str, path: Optional[str], by_design: Collection[str] = ()
) -> Optional[str]:
    """Return the newest clean checkpoint that the run of a file has written.

    Args:
        work_dir: The folder to search, besides the folder of the file.
        path: A checkpoint of the run, which may be bad or missing. None means
            the last one that was clean when it was written.
        by_design: The names of the model's tensors that may hold NaN or Inf.
    """
    last_clean = read_pointer(work_dir, LAST_CLEAN)
    paths = set(Path(work_dir).glob('*.pth'))
    run: Optional[Lineage] = None
    limit: Optional[int] = None
    for known in filter(None, (path, last_clean)):
        paths |= {Path(known), *Path(known).parent.glob('*.pth')}
        content = read_head(Path(known))
        # The run is that of the first file that can be read.
        if content is not None and run is None:
            run = Lineage.of(content)
            if known == path:
                limit = iteration_of(content)

    def is_wanted(_: Path, checkpoint: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is of the run, as far as that is known."""
        if run is None:
            return True
        other, count = Lineage.of(checkpoint), iteration_of(checkpoint)
        # A file that is not the newest of its run may be older or younger.
        if limit is None and is_earlier(run, other):
            return True
        is_older = limit is None or (count is not None and count <= limit)
        return is_older and is_earlier(other, run) is not False

    clean = find_newest_clean(paths, is_wanted, by_design)
    return None if clean is None else str(clean.path)


def resume_from_clean(
    runner: Runner, by_design: Optional[Collection[str]] = None
) -> None:
    """Let ``resume=True`` alone resume from the newest clean checkpoint.

    Collective: rank 0 reads for all ranks. Does nothing if the config names a
    checkpoint, or if one is loaded already.

    Args:
        runner: The runner, before it loads.
        by_design: The result of :func:`names_by_design`, if it is known.
    """
    if runner._has_loaded or not runner._resume or runner._load_from:
        return
    choice: List[Any] = [None]
    if is_main_process():
        if by_design is None:
            by_design = names_by_design(runner)
        choice[0] = choose_resume(runner.work_dir, by_design)
    # All ranks must load the same file.
    broadcast_object_list(choice)
    path, story = choice[0]
    if story:
        say(f'mmnanguard: {escape(story)}', logging.WARNING, runner.logger)
    if path:
        runner._load_from = path


def names_by_design(runner: Runner) -> Set[str]:
    """Return the tensors that are not sound before anything is loaded.

    Masks with -inf and buffers with NaN are built by the model itself. Syncs
    the device for each tensor.
    """
    tensors: Dict[str, Tensor] = {}
    # A FlexibleRunner builds its model later.
    if isinstance(runner.model, nn.Module):
        for name, tensor in named_tensors(runner.model):
            tensors[plain_name(name)] = tensor
    scan = scan_checkpoint({'state_dict': tensors})
    names = {finding.name for finding in scan.findings}
    return names | {mask.name for mask, _ in scan.masks}


def is_clean_alone(file: CheckpointFile) -> bool:
    """Whether a file is clean without a comparison with other files."""
    is_read = file.status == 'read'
    return is_read and not file.scan.findings and not file.scan.masks


def words_on(file: CheckpointFile) -> str:
    """Return the words on a checkpoint that is not known to be clean."""
    if file.status != 'read':
        return f'{file.status} ({file.reason})'
    findings = [*file.scan.findings, *[mask for mask, _ in file.scan.masks]]
    first = findings[0]
    more = ''
    if findings[1:]:
        more = f', and {len(findings) - 1} more'
    return f"bad ('{first.name}' ({first.part}) is {first.kind}{more})"


def is_local(path: str) -> bool:
    """Whether a path is that of a local file."""
    return isinstance(get_file_backend(path), LocalBackend)
