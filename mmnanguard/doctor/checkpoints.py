"""The look at the checkpoint that training will begin with."""

from dataclasses import replace
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional

from mmengine.config import Config

from mmnanguard._support.escape import escape
from mmnanguard.core.launch import tool_command
from mmnanguard.hooks.recovery.choose_resume import choose_resume, words_on
from mmnanguard.hooks.recovery.pointers import LAST, read_pointer
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    CheckpointFile,
    judge_files,
    load,
    scan_file,
)
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .finding import Finding, fail, fine, warn

__all__ = ['Beginning', 'look_at_beginning']


class Beginning(NamedTuple):
    """The start of training: from scratch, or from a checkpoint.

    Attributes:
        findings: The findings on it.
        resumes: Whether the command to start should resume.
    """

    findings: List[Finding]
    resumes: bool


def look_at_beginning(cfg: Config) -> Beginning:
    """Scan the checkpoint that a run will load, or find one to resume.

    Args:
        cfg: The config with ``work_dir``, ``resume`` and ``load_from`` as
            training will see them.
    """
    allow_mmengine_checkpoints()
    findings = look_at_pretrained(cfg.get('model'))
    path = cfg.get('load_from')
    if path:
        return Beginning([look_at_file(str(path)), *findings], False)
    begin = look_at_work_dir(cfg, bool(cfg.get('resume')))
    return Beginning([*begin.findings, *findings], begin.resumes)


def look_at_file(path: str) -> Finding:
    """Return the finding on a checkpoint that the config or command names."""
    shown = escape(path)
    if '://' in path:
        return fine(f'{shown} is elsewhere; it was not looked at')
    if not Path(path).exists():
        return fail(
            f'There is no checkpoint {shown}.',
            'Correct load_from or --resume.',
        )
    scanned = scan_file(Path(path))
    (file,) = judge_files([scanned])
    if file.status == 'clean':
        return fine(f'{shown}: clean{count_of(file)}')
    if file.status == 'foreign':
        # MMEngine loads a bare state dict as well.
        return warn(f'{shown} was not scanned: {file.reason}.')
    # Masks of -inf are there by design.
    scanned = replace(scanned, scan=replace(scanned.scan, masks=()))
    return fail(
        f'{shown} is {words_on(scanned)}.',
        'Find the newest clean checkpoint beside it:',
        tool_command('scan_checkpoints', Path(path).parent),
    )


def look_at_work_dir(cfg: Config, is_wanted: bool) -> Beginning:
    """Look for a run in the work dir that training could go on with.

    Args:
        cfg: The config.
        is_wanted: Whether the config or the command line resumes.
    """
    work_dir = str(cfg.work_dir)
    last = read_pointer(work_dir, LAST)
    if last is None:
        text = 'none is loaded: training begins from scratch'
        if is_wanted:
            text = (
                f'none to resume in {escape(work_dir)}: training begins anew'
            )
        return Beginning([fine(text)], False)
    if not is_wanted and is_done(cfg, last):
        return Beginning(
            [
                warn(
                    f'{escape(work_dir)} holds a run that has ended '
                    f'({escape(Path(last).name)}).',
                    'Training begins anew; to keep the two apart add '
                    '--work-dir.',
                )
            ],
            False,
        )
    clean, story = choose_resume(work_dir)
    if clean is None and story:
        return Beginning(
            [
                fail(
                    f'{escape(story)}.',
                    'Begin anew in another folder: --work-dir',
                )
            ],
            True,
        )
    if clean is not None:
        return Beginning([warn(escape(story) + '.')], True)
    text = f'{escape(last)} is clean'
    if is_wanted:
        return Beginning([fine(f'{text}: training goes on from it')], True)
    return Beginning(
        [
            warn(
                f'{escape(work_dir)} holds a run that has not ended; {text}.',
                'The command below goes on with it; to begin anew leave out '
                '--resume and add --work-dir.',
            )
        ],
        True,
    )


def is_done(cfg: Config, path: str) -> bool:
    """Whether a checkpoint is that of the last iteration or epoch."""
    try:
        meta = load(Path(path)).get('meta') or {}
    except Exception:  # a broken file may raise anything
        return False
    loop: Mapping[str, Any] = cfg.get('train_cfg') or {}
    for key, done in (('max_epochs', 'epoch'), ('max_iters', 'iter')):
        if loop.get(key) and isinstance(meta.get(done), int):
            return bool(meta[done] >= loop[key])
    return False


def look_at_pretrained(node: Any, where: str = 'model') -> List[Finding]:
    """Return a finding on each local file of pretrained weights."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return []
    findings = []
    path = local_path(node)
    if path is not None:
        finding = look_at_file(path)
        if finding.level == 'FAIL' and not Path(path).exists():
            finding = fail(
                f'{where}.checkpoint: there is no file {escape(path)}.',
                'Correct the path, or download the weights.',
            )
        findings.append(finding)
    for key, value in node.items():
        findings += look_at_pretrained(value, f'{where}.{key}')
    return findings


def local_path(node: Mapping[str, Any]) -> Optional[str]:
    """Return the local file that an ``init_cfg`` loads, if it does."""
    path = node.get('checkpoint')
    if node.get('type') != 'Pretrained' or not isinstance(path, str):
        return None
    # 'torchvision://resnet50' and URLs are downloaded.
    return None if '://' in path else path


def count_of(file: CheckpointFile) -> str:
    """Return the iteration of a checkpoint, as a clause."""
    return '' if file.iter is None else f', of iteration {file.iter}'
