"""Rows of events.jsonl, made by the classes that write them."""

import json

from mmnanguard.core import Action, Autopsy, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rows.json_numbers import to_json

RUN = 'a'
NAN = float('nan')


def bad(name, kind='nan', tensor='gradient'):
    return BadTensor(name, tensor, kind, 1, 8, -0.5, 0.5, 'float32')


def start(iter_=1, attempt=1, max_iters=1000, run=RUN, **keys):
    keys = {'versions': {'torch': '2.13.0'}, 'guards': {'default': {}}, **keys}
    first = dict(schema=1, kind='start', run=run, attempt=attempt)
    return dict(**first, iter=iter_, max_iters=max_iters, **keys)


def update(iter_, cause='grad_nonfinite', name='', action='skip', **keys):
    values = dict(
        loss=2.0,
        grad_norm=NAN,
        lr=(0.1,),
        loss_scale={'before': 1024.0, 'after': 512.0},
        num_bad_params=1,
        num_params=8,
        params=(bad(name),) if name else (),
        consecutive_skips=1,
        id=f'{RUN}-{iter_}',
        run=RUN,
        time='2026-02-11T16:26:11+00:00',
    )
    values.update(keys)
    event = GuardEvent(Action(action), Cause(cause), iter_, **values)
    return json.loads(to_json(event.to_row()))


def routine(iter_, name='head.weight', **keys):
    return update(iter_, 'scale_overflow', name, **keys)


def joined(iter_, kind, **keys):
    """Return a row that is joined by its id to the update of an iteration."""
    return dict(schema=1, kind=kind, id=f'{RUN}-{iter_}', **keys)


def autopsy(iter_, module='head', phase='forward', **keys):
    values = dict(
        module_type='Linear',
        op='aten.mm',
        source='net.py:7',
        dtype='float16',
        input_absmax=3e4,
        output_absmax=float('inf'),
        dtype_max=65504.0,
        repeats=True,
    )
    values.update(keys)
    result = Autopsy(f'{RUN}-{iter_}', phase, module, **values)
    return json.loads(to_json(result.to_row()))


def dump(iter_, path='/x/iter_1_rank0.pt', needs=()):
    keys = dict(rank=0, path=path, bytes=2**20, needs=list(needs))
    return joined(iter_, 'dump', **keys)


def remedy(iter_, module='head'):
    config = f"default_hooks=dict(fp32=dict(modules=['{module}']))"
    keys = dict(remedy='fp32', module=module, config=config)
    return joined(iter_, 'remedy', **keys)


def rollback(iter_, to=0, num=1):
    keys = dict(iter=iter_, to=to, path='', num_rollbacks=num)
    return joined(iter_, 'rollback', **keys, lr_factor=0.1, loss_scale=512.0)


def audit(iter_, name='head.weight', id_=''):
    tensor = dict(vars(bad(name, tensor='weight')))
    first = dict(schema=1, kind='audit', id=id_ or f'{RUN}-{iter_}-audit.1')
    return dict(
        **first,
        run=RUN,
        attempt=1,
        iter=iter_,
        epoch=1,
        ranks=[0],
        where=['weights'],
        num_bad=1,
        tensors=[tensor],
        checkpoint=None,
    )


def halt(iter_, id_=''):
    story = f'training halted at iteration {iter_}\n  What to try: rest.'
    row = joined(iter_, 'halt', iter=iter_, story=story)
    return dict(row, id=id_ or row['id'])


def bad_input(iter_, *samples, action='reject', **keys):
    row = dict(ranks=[0], num_samples=len(samples), samples=samples)
    row.update(keys=dict(inputs=samples), action=action, iter=iter_)
    return joined(iter_, 'input', **row, **keys)


def alert(iter_, rule='update_ratio', **keys):
    values = dict(value=0.5, limit=0.05, lr=10.0, id=f'{RUN}-{iter_}-alert.1')
    if rule == 'headroom':
        values.update(
            module='head',
            value=2.0**8,
            limit=65504.0,
            dtype='float16',
            doubles=10.0,
            left=80.0,
            advice='fp32',
            config="default_hooks=dict(fp32=dict(modules=['head']))",
        )
    if rule in ('update_ratio', 'attention_logits'):
        values['advice'] = 'lr'
    row = AlertRow(run=RUN, iter=iter_, rule=rule, **{**values, **keys})
    return json.loads(to_json(row.to_row()))


def header(*modules):
    return dict(schema=1, kind='header', modules=modules)


def sample(iter_, outputs=(), half=(), **keys):
    """Return a row of stability.jsonl; outputs are powers of 2."""
    tenths = []
    for power in outputs:
        is_number = isinstance(power, (int, float))
        tenths.append(round(10 * power) if is_number else power)
    values = dict(logits=None, update_ratio=None, scaled_grad=None)
    row = dict(iter=iter_, outputs=tenths, float16=half, **values)
    return {**row, 'loss_scale': 1.0, 'lr': 0.1, **keys}


def write_samples(folder, rows):
    """Append rows of samples to the file of one attempt; return its path."""
    path = folder / 'nanguard' / 'stability.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
    return path


def write_events(folder, rows):
    """Append the rows to the event file of one attempt; return its path."""
    path = folder / 'nanguard' / 'events.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
    return path


def write_scalars(folder, rows):
    """Write a scalar file as MMEngine does, which includes bare NaNs."""
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
    return path


def streak(first, cause='loss_nonfinite'):
    """Return five updates in a row that are rejected."""
    return [
        update(first + i, cause, consecutive_skips=i + 1) for i in range(5)
    ]
