import shlex
from dataclasses import fields
from typing import Any, Callable, Dict, Mapping, Type, TypeVar

from mmnanguard.core import Action, Autopsy, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.json_numbers import to_json

__all__ = ['as_number', 'autopsy_of', 'command_of', 'tell']

Row = Mapping[str, Any]
T = TypeVar('T')
NUMBERS = {name: float(name) for name in ('nan', 'inf', '-inf')}


def tell(row: Row) -> str:
    """What a row says, in words; of an update what the console said.

    A row of another version that does not say what it should is told as it
    stands.
    """
    try:
        return TOLD[str(row.get('kind'))](row)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        hidden = ('schema', 'kind', 'id', 'run', 'attempt', 'iter')
        return to_json({k: v for k, v in row.items() if k not in hidden})


def command_of(row: Row) -> str:
    """What to paste: the config line of a remedy, the replay of a dump; ''
    of other rows.
    """
    if row.get('kind') == 'remedy':
        return str(row.get('config', ''))
    if row.get('kind') == 'dump':
        words = [
            'python -m mmnanguard replay',
            shlex.quote(str(row.get('path'))),
        ]
        for option in row.get('needs') or ():
            file = shlex.quote(str(row.get(str(option)) or 'FILE'))
            words.append(f'--{option} {file}')
        return ' '.join(words)
    return ''


def as_number(value: Any) -> Any:
    """JSON's 'nan', 'inf' and '-inf' are floats here."""
    return NUMBERS.get(value, value) if isinstance(value, str) else value


def autopsy_of(row: Row) -> Autopsy:
    return record_of(Autopsy, row, id=str(row.get('id')))


def record_of(record: Type[T], row: Row, **values: Any) -> T:
    """A record of what the row has of its fields."""
    known: Dict[str, Any] = {}
    for each in fields(record):  # type: ignore[arg-type]
        if each.name in row:
            value = row[each.name]
            # A kind of tensor is called 'nan' as well.
            known[each.name] = (
                as_number(value) if each.type is float else value
            )
    return record(**{**known, **values})


def tell_update(row: Row) -> str:
    spike = row.get('spike')
    event = record_of(
        GuardEvent,
        row,
        action=Action(row['action']),
        cause=Cause(row['cause']),
        params=tuple(
            record_of(BadTensor, each) for each in row.get('params') or ()
        ),
        spike=spike and {key: as_number(spike[key]) for key in spike},
    )
    return event.line().split(': ', 1)[1]


def tell_autopsy(row: Row) -> str:
    line = autopsy_of(row).line(0)
    return line.split(': autopsy: ', 1)[1]


def tell_start(row: Row) -> str:
    versions = row.get('versions', {})
    told = ', '.join(f'{name} {versions[name]}' for name in versions)
    return f'attempt {row["attempt"]} starts at iteration {row["iter"]}' + (
        f' ({told})' if told else ''
    )


def tell_dump(row: Row) -> str:
    size = row['bytes'] / 2**20
    return f'batch of rank {row["rank"]} dumped, {size:.1f} MiB: {row["path"]}'


def tell_remedy(row: Row) -> str:
    if row['remedy'] != 'fp32':
        raise ValueError(row['remedy'])
    return f"'{row['module']}' runs in float32 from here on"


def tell_rollback(row: Row) -> str:
    of_path = f', from {row["path"]}' if row.get('path') else ''
    return (
        f'went back to the state after iteration {row["to"]}{of_path} '
        f'(rollback {row["num_rollbacks"]}); learning rate x '
        f'{row["lr_factor"]:g}, loss scale {row["loss_scale"]:g}'
    )


def tell_audit(row: Row) -> str:
    first = row['tensors'][0]
    kind = {'nan': 'NaN', 'inf': 'Inf'}.get(first['kind'], first['kind'])
    more = row['num_bad'] - 1
    return (
        f"audit: '{first['name']}' ({first['tensor']}) is {kind}, "
        f'{first["count"]} of {first["numel"]}'
        + (f', and {more} more in {", ".join(row["where"])}' if more else '')
        + (
            f'; {row["checkpoint"]} is not written'
            if row.get('checkpoint')
            else ''
        )
    )


def tell_input(row: Row) -> str:
    done = {
        'reject': 'the update was rejected',
        'sanitize': 'mended and trained on',
        'halt': 'training halts',
    }[row['action']]
    since = f' since iteration {row["since"]}' if 'since' in row else ''
    num = row['num_samples']
    return (
        f'input of {num} sample{"s" * (num != 1)} is not finite in '
        f'{", ".join(row["keys"])}{since}: '
        + ', '.join(row['samples'][:3])
        + (f' and {num - 3} more' if num > 3 else '')
        + f'; {done}'
    )


TOLD: Dict[str, Callable[[Row], str]] = {
    'audit': tell_audit,
    'autopsy': tell_autopsy,
    'dump': tell_dump,
    'halt': lambda row: str(row['story']),
    'input': tell_input,
    'remedy': tell_remedy,
    'rollback': tell_rollback,
    'start': tell_start,
    'update': tell_update,
}
