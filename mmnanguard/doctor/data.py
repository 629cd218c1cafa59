"""The look at the training data: its folders and its first samples."""

from pathlib import Path
from typing import Any, Iterator, List, Mapping, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmnanguard._support.escape import escape
from mmnanguard.core import GuardConfigError
from mmnanguard.core.launch import tool_command
from mmnanguard.datasets.audited_dataset import PIPELINE, AuditedDataset, Row
from mmnanguard.datasets.find_problems import build_checks

from .finding import Finding, fail, fine, warn

__all__ = ['audit_first', 'look_at_data']

MAX_SHOWN = 3


def look_at_data(cfg: Config) -> List[Finding]:
    """Return a finding on each folder of training data that is missing."""
    loader = cfg.get('train_dataloader')
    if not isinstance(loader, Mapping):
        return [fail('The config has no train_dataloader.')]
    findings = []
    for where, root in roots_in(loader.get('dataset'), 'dataset'):
        if not Path(root).exists():
            findings.append(
                warn(
                    f'train_dataloader.{where}: there is no {escape(root)} '
                    'here.',
                    'Correct it, unless the dataset downloads its data or '
                    'training runs elsewhere.',
                )
            )
    return findings


def roots_in(node: Any, where: str) -> Iterator[Tuple[str, str]]:
    """Yield path and value of each local ``data_root``."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    root = node.get('data_root')
    # A backend may map the path to a server.
    has_backend = node.get('backend_args') or node.get('file_client_args')
    if isinstance(root, str) and '://' not in root and not has_backend:
        yield f'{where}.data_root', root
    for key, value in node.items():
        if key != 'pipeline':
            yield from roots_in(value, f'{where}.{key}')


def audit_first(path: str, cfg: Config, count: int) -> List[Finding]:
    """Load the first samples of the training data, and check them.

    Args:
        path: The path of the config, for the command that checks all.
        cfg: The config.
        count: The number of samples.
    """
    try:
        dataset = AuditedDataset(
            DATASETS.build(cfg.train_dataloader.dataset),
            build_checks(['Finite'], 'checks'),
            [],
        )
        rows = []
        for index in range(min(count, len(dataset))):
            row = dataset[index]
            if isinstance(row, GuardConfigError):
                raise row
            rows.append(row)
    except Exception as error:  # a user's dataset: whatever it raises
        text = escape(f'{type(error).__name__}: {error}')
        return [
            fail(
                f'The training dataset cannot be built: {text}',
                'Training would end with the same error: correct '
                'train_dataloader.dataset.',
            )
        ]
    bad = [row for row in rows if row and row['problems']]
    number = f'first {len(rows)} of {len(dataset)} samples'
    if not bad:
        return [fine(f'{number}: all can be loaded and are finite')]
    return [judge(path, number, bad)]


def judge(path: str, number: str, bad: List[Row]) -> Finding:
    """Return the finding on samples of which some are bad."""
    shown, is_broken = [], False
    for row in bad[:MAX_SHOWN]:
        problem = row['problems'][0]
        is_broken |= problem['check'] == PIPELINE
        name = row.get('name') or f'index {row["index"]}'
        shown.append(f'{escape(name)}: {escape(problem["text"])}')
    text = f'{len(bad)} bad of the {number}. {"; ".join(shown)}'
    command = tool_command('audit_dataset', path)
    if is_broken:
        return fail(
            text, 'Loading fails. All bad samples are listed by:', command
        )
    cure = (
        'The guard skips their updates, in each epoch. This lists them all, '
    )
    'for --exclude:'
    return warn(text, cure, command)
