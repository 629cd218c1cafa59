"""The search for the newest clean checkpoint among many large files."""

from dataclasses import replace
from pathlib import Path
from typing import Callable, Collection, Iterable, List, NamedTuple, Optional

from .checkpoint_file import (
    CheckpointFile,
    iteration_of,
    judge_files,
    load,
    rank_files,
    scan_file,
)
from .saved_optimizer import StateDict

__all__ = ['find_newest_clean', 'read_head', 'scan_known']


class Candidate(NamedTuple):
    """A checkpoint that has not been scanned yet, in order of age."""

    iter: int
    time: float
    path: Path


def find_newest_clean(
    paths: Iterable[Path],
    is_wanted: Callable[[Path, StateDict], bool],
    by_design: Collection[str] = (),
) -> Optional[CheckpointFile]:
    """Return the newest clean checkpoint from which a run can be resumed.

    Only the heads of all files are read. Files are scanned one by one, from
    the newest one on. A file that may hold masks is compared with the next
    older file without a finding.

    Args:
        paths: Files, or folders with a file per rank.
        is_wanted: Whether a file may be chosen, by its path and its content,
            whose tensors are not read.
        by_design: The names of the model's tensors that may hold NaN or Inf.
    """
    candidates: List[Candidate] = []
    for path in paths:
        content = read_head(path)
        if content is None or not content.get('optimizer'):
            continue
        count = iteration_of(content)
        if count is not None and is_wanted(path, content):
            time = path.stat().st_mtime
            candidates.append(Candidate(count, time, path))
    newer: Optional[CheckpointFile] = None
    for candidate in sorted(candidates, reverse=True):
        file = scan_known(candidate.path, by_design)
        if file.status != 'read' or file.scan.findings:
            continue
        if newer is not None:
            for judged in judge_files([newer, file]):
                if judged.path == newer.path and judged.status == 'clean':
                    return judged
        elif not file.scan.masks:
            return replace(file, status='clean')
        # Its masks differ from the newer file's, or were not compared yet.
        newer = file
    return None if newer is None else replace(newer, status='clean')


def read_head(path: Path) -> Optional[StateDict]:
    """Return the content of a checkpoint, or None if it cannot be read.

    Tensors are mapped from the file and read only when they are used. Of a
    folder, the file of the first rank is read.
    """
    try:
        if path.is_dir():
            return load(rank_files(path)[0], is_sharded=True)
        return load(path)
    except Exception:  # a broken file may raise anything
        return None


def scan_known(path: Path, by_design: Collection[str] = ()) -> CheckpointFile:
    """Scan a checkpoint, without what is there by design.

    Args:
        path: A file, or a folder with a file per rank.
        by_design: The names of the model's tensors that may hold NaN or Inf.
    """
    file = scan_file(path)
    findings, masks = [], []
    for finding in file.scan.findings:
        is_of_model = finding.part in ('weight', 'ema')
        if not (is_of_model and finding.name in by_design):
            findings.append(finding)
    for mask, bits in file.scan.masks:
        if mask.name not in by_design:
            masks.append((mask, bits))
    scan = replace(file.scan, findings=tuple(findings), masks=tuple(masks))
    return replace(file, scan=scan)
