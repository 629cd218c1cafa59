"""The files of an audit: report, pictures and the list of bad samples."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Counter, Dict, Mapping, Sequence

from mmnanguard.core.rows.json_numbers import to_json

from .audited_dataset import Row
from .distribution import Distribution, distribution
from .sample_list import Listed, write_sample_list

__all__ = ['Report', 'audit_report', 'write_report']

# A report as it is written to JSON; audit_report() has its keys.
Report = Dict[str, Any]


def audit_report(
    rows: Mapping[int, Row], keys: Sequence[str], facts: Mapping[str, object]
) -> Report:
    """Return the report for the rows of all samples.

    It depends on the rows alone, not on times or the order of their arrival,
    so that all ranks write the same report.

    Args:
        rows: The row of each sample, by index and in this order.
        keys: The fields whose distributions are reported.
        facts: The settings that the rows depend on; they become keys of the
            report.
    """
    bad = []
    dropped = []
    num_failed: Counter[str] = Counter()
    for row in rows.values():
        entry = {'index': row['index'], 'name': row['name']}
        if row['problems']:
            bad.append({**entry, 'problems': row['problems']})
            # A sample counts once for a check that it fails several times.
            num_failed.update({item['check'] for item in row['problems']})
        if row.get('is_dropped'):
            dropped.append(entry)
    report: Report = {
        # Readers can tell reports of later versions apart by this number.
        'schema': 1,
        **facts,
        'num_bad': len(bad),
        'num_dropped': len(dropped),
        # Sorted, because the order of a set of strings differs by process.
        'failed': dict(sorted(num_failed.items())),
        'distributions': {},
        'bad': bad,
        'dropped': dropped,
    }
    for number, key in enumerate(keys):
        report['distributions'][key] = named_distribution(rows, number, key)
    return report


def named_distribution(
    rows: Mapping[int, Row], number: int, key: str
) -> Distribution:
    """Return a field's distribution with names of samples and of a picture.

    Args:
        rows: The row of each sample, by index.
        number: The field's position, which makes the picture's name unique.
        key: The field.
    """
    summaries = {}
    for index, row in rows.items():
        # A sample that was dropped or raised has no values.
        if 'values' in row:
            summaries[index] = row['values'][key]
    values = distribution(summaries)
    for end in ('min_sample', 'max_sample'):
        if end in values:
            index = values[end]
            values[end] = rows[index]['name'] or f'index {index}'
    if 'histogram' in values:
        # A key may be an expression: keep only letters that a file name can
        # have, and a length that all file systems allow.
        name = re.sub(r'\W+', '_', key).strip('_')[:60]
        values['picture'] = f'{number}_{name}.png'
    return values


def write_report(report: Report, folder: Path) -> None:
    """Write a picture for each key, ``bad_samples.txt``, ``report.json``.

    Ranks that end together write the same files at the same time. So each
    rank writes to a temporary folder and moves complete files out of it, with
    ``report.json`` as the last.
    """
    with TemporaryDirectory(prefix='partial_', dir=folder) as name:
        aside = Path(name)
        for key, values in report['distributions'].items():
            if 'picture' in values:
                draw(key, values, aside / values['picture'])
        bad = []
        for row in report['bad']:
            bad.append(Listed(row['index'], row['name']))
        write_sample_list(aside / 'bad_samples.txt', bad)
        # A name may hold bytes that are no UTF-8 (surrogates).
        text = to_json(report).encode('utf-8', 'backslashreplace')
        (aside / 'report.json').write_bytes(text + b'\n')
        # False sorts before True: report.json, which tells that the other
        # files are complete, is moved last.
        for path in sorted(
            aside.iterdir(), key=lambda file: file.suffix == '.json'
        ):
            path.replace(folder / path.name)


def draw(key: str, values: Distribution, path: Path) -> None:
    """Draw the histogram of a field's values, with its quartiles."""
    # Only an audit needs matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.subplots()
    edges = values['histogram']['edges']
    axes.stairs(values['histogram']['counts'], edges, fill=True)
    # A few outliers among millions of values have to be visible; linear below
    # 1, because an empty bar has no logarithm.
    axes.set_yscale('symlog', linthresh=1)
    for value in values['quartiles']:
        axes.axvline(value, color='black', linewidth=0.8, linestyle=':')
    # A '$' in an expression would start a formula.
    axes.set_xlabel(key, parse_math=False)
    axes.set_ylabel('values')
    axes.set_title(
        f'{values["count"]} values, mean {values["mean"]:.4g}, std '
        f'{values["std"]:.4g}; dotted: quartiles'
    )
    figure.savefig(path, format='png', dpi=100)
