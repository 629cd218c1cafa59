"""What an audit came to, in files."""

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Mapping, Sequence

from mmnanguard.core.rows.json_numbers import to_json

from .distribution import distribution
from .sample_list import Listed, write_sample_list

__all__ = ['audit_report', 'write_report']


def audit_report(
    rows: Mapping[int, Mapping[str, Any]],
    keys: Sequence[str],
    facts: Mapping[str, Any],
) -> Dict[str, Any]:
    """The same for the same rows: no times, no order of arrival.

    Args:
        rows: Of all samples, by index, in order.
        keys: The fields whose distributions it tells.
        facts: What the rows depend on.
    """
    bad = [row for row in rows.values() if row['problems']]
    dropped = [row for row in rows.values() if row.get('is_dropped')]
    checks = Counter(
        check
        for row in bad
        for check in {problem['check'] for problem in row['problems']}
    )
    report = {
        'schema': 1,
        **facts,
        'num_bad': len(bad),
        'num_dropped': len(dropped),
        'failed': dict(sorted(checks.items())),
        'distributions': {},
        'bad': [
            {key: row[key] for key in ('index', 'name', 'problems')}
            for row in bad
        ],
        'dropped': [
            {key: row[key] for key in ('index', 'name')} for row in dropped
        ],
    }
    for number, key in enumerate(keys):
        told = distribution(
            {
                index: row['values'][key]
                for index, row in rows.items()
                if 'values' in row
            }
        )
        for end in ('min_sample', 'max_sample'):
            if end in told:
                index = told[end]
                told[end] = rows[index]['name'] or f'index {index}'
        if 'histogram' in told:
            name = re.sub(r'\W+', '_', key).strip('_')[:60]
            told['picture'] = f'{number}_{name}.png'
        report['distributions'][key] = told
    return report


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """A picture for each key, ``bad_samples.txt`` and at last
    ``report.json``. Ranks that end together write the same at once: each in
    a folder of its own, from which whole files are moved.
    """
    with TemporaryDirectory(prefix='partial_', dir=folder) as name:
        aside = Path(name)
        for key, told in report['distributions'].items():
            if 'picture' in told:
                draw(key, told, aside / told['picture'])
        bad = [Listed(row['index'], row['name']) for row in report['bad']]
        write_sample_list(aside / 'bad_samples.txt', bad)
        text = to_json(report).encode('utf-8', 'backslashreplace')
        (aside / 'report.json').write_bytes(text + b'\n')
        for path in sorted(
            aside.iterdir(), key=lambda at: at.suffix == '.json'
        ):
            path.replace(folder / path.name)


def draw(key: str, told: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.subplots()
    edges = told['histogram']['edges']
    axes.stairs(told['histogram']['counts'], edges, fill=True)
    axes.set_yscale('symlog', linthresh=1)
    for value in told['quartiles']:
        axes.axvline(value, color='black', linewidth=0.8, linestyle=':')
    axes.set_xlabel(key, parse_math=False)
    axes.set_ylabel('values')
    axes.set_title(
        f'{told["count"]} values, mean {told["mean"]:.4g}, std '
        f'{told["std"]:.4g}; dotted: quartiles'
    )
    figure.savefig(path, format='png', dpi=100)
