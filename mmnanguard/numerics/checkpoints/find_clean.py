"""The search for the newest clean checkpoint among many large files."""

from dataclasses import replace
from pathlib import Path
from typing import (
    Callable,
    Collection,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
)

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
    known: Sequence[CheckpointFile] = (),
) -> Optional[CheckpointFile]:
    """Return the newest clean checkpoint from which a run can be resumed.

    Only the heads of all files are read. Files are scanned one by one, from
    the newest one on, and compared with the files scanned before and with one
    older file, which shows what is a mask.

    Args:
        paths: Files, or folders with a file per rank.
        is_wanted: Whether a file may be chosen, by its path and its content,
            whose tensors are not read.
        by_design: The names of the model's tensors that may hold NaN or Inf.
        known: The results of earlier scans, to compare with.
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
    candidates.sort(reverse=True)
    scans = list(known)
    num_judged = 0
    for index, candidate in enumerate(candidates):
        scans.append(scan_known(candidate.path, by_design))
        is_last = index + 1 == len(candidates)
        if len(scans) == 1 and not is_last:
            continue
        judged = {file.path: file for file in judge_files(scans)}
        for newer in candidates[num_judged : index + 1]:
            if judged[newer.path].status == 'clean':
                return judged[newer.path]
        num_judged = index + 1
    return None


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
    """Scan a checkpoint, without the findings that are there by design.

    Args:
        path: A file, or a folder with a file per rank.
        by_design: The names of the model's tensors that may hold NaN or Inf.
    """
    file = scan_file(path)
    findings = []
    for finding in file.scan.findings:
        is_of_model = finding.part in ('weight', 'ema')
        if not (is_of_model and finding.name in by_design):
            findings.append(finding)
    return replace(file, scan=replace(file.scan, findings=tuple(findings)))
