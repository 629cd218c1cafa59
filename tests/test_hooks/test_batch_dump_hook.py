"""A dump holds all that is needed to run a rejected update again."""

from collections import namedtuple
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks.replay.plain_batch import from_plain, to_plain

CFG = dict(model=dict(type='ToyNet'))


def train(work_dir, faults=(3,), accumulation=1, cfg=CFG, **hook):
    hooks = guard_hooks(*(dict(iter=n, site='loss') for n in faults))
    hooks['dump'] = dict(type='mmnanguard.BatchDumpHook', **hook)
    runner = make_runner(
        work_dir,
        wrapper(accumulative_counts=accumulation),
        default_hooks=hooks,
        cfg=cfg,
    )
    runner.train()
    return runner


def dumps(runner):
    return sorted(Path(runner.log_dir, 'nanguard/dumps').glob('*'))


@pytest.mark.gpu_too
def test_a_dump_holds_the_window(tmp_path):
    runner = train(tmp_path, faults=(5,), accumulation=3, save_weights=True)
    (path,) = dumps(runner)
    assert path.name == 'iter_6_rank0.pt'
    dump = torch.load(path, weights_only=True)
    (event,) = read_rows(runner)
    assert dump['event']['id'] == event['id']
    batches = from_plain(dump['batches'])
    data = runner.train_dataloader.dataset
    assert len(batches) == len(dump['rng']) == 3
    for number, batch in enumerate(batches):
        for index, image in enumerate(batch['inputs']):
            expected = data[(3 + number) * 4 + index]
            assert torch.equal(image, expected['inputs'])
            sample = batch['data_samples'][index]
            assert type(sample) is BaseDataElement
            assert sample.img_path == expected['data_samples'].img_path
            assert sample.label == expected['data_samples'].label
    assert dump['weights'].keys() == runner.model.state_dict().keys()
    assert "type='ToyNet'" in dump['config']
    (row,) = read_rows(runner, 'dump')
    assert row['id'] == event['id']
    assert row['path'] == str(path)
    assert row['bytes'] == path.stat().st_size
    assert row['needs'] == ['config']  # CFG is no whole one


def test_no_more_than_wanted(tmp_path):
    runner = train(tmp_path, faults=(2, 4, 6), max_dumps=2)
    assert [path.name for path in dumps(runner)] == [
        'iter_2_rank0.pt',
        'iter_4_rank0.pt',
    ]


def test_one_that_is_too_large_is_not_kept(tmp_path):
    runner = train(tmp_path, max_megabytes=1e-3)
    assert dumps(runner) == []
    assert read_rows(runner, 'dump') == []
    assert runner.iter == 10


def test_a_disk_that_is_full_costs_the_dump_only(tmp_path, monkeypatch):
    save = torch.save

    def full(obj, file):
        if 'event' not in obj:
            return save(obj, file)
        Path(file).write_bytes(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full)
    runner = train(tmp_path)
    assert runner.iter == 10
    assert dumps(runner) == []
    (log,) = Path(runner.log_dir).glob('*.log')
    assert 'this dump is lost' in log.read_text()


@pytest.mark.parametrize('key', ['max_dumps', 'max_megabytes'])
def test_bad_limits(tmp_path, key):
    with pytest.raises(GuardConfigError, match=key):
        train(tmp_path, **{key: 0})


def test_what_a_batch_can_hold_comes_back():
    boxes = InstanceData(boxes=torch.rand(2, 4), names=['a', 'b'])
    batch = dict(
        inputs=(torch.rand(2), np.arange(3.0)),
        number=np.float32(1.5),
        sample=BaseDataElement(metainfo=dict(shape=(3, 4)), boxes=boxes),
    )
    code, pickled, lost = to_plain(batch)
    back = from_plain(code)
    assert pickled == lost == []
    assert torch.equal(back['inputs'][0], batch['inputs'][0])
    assert np.array_equal(back['inputs'][1], batch['inputs'][1])
    assert back['number'] == 1.5
    assert back['sample'].shape == (3, 4)
    assert type(back['sample'].boxes) is InstanceData
    assert torch.equal(back['sample'].boxes.boxes, boxes.boxes)


Pair = namedtuple('Pair', ['left', 'right'])


@pytest.mark.parametrize('thing', [Path('x'), Pair(1, 2)])
def test_other_objects_are_pickled_and_open_on_demand_only(thing):
    code, pickled, lost = to_plain(dict(thing=thing))
    name = f'{type(thing).__module__}.{type(thing).__qualname__}'
    assert pickled == [name]
    assert lost == []
    with pytest.raises(ValueError, match=f'holds a pickled {name}'):
        from_plain(code)
    (back,) = from_plain(code, allow_pickle=True).values()
    assert type(back) is type(thing)
    assert back == thing


def test_what_cannot_be_kept_is_named():
    code, pickled, lost = to_plain(dict(thing=Lock()))
    assert pickled == []
    assert lost == ['_thread.lock']
    with pytest.raises(ValueError, match=r'holds no _thread\.lock: <unlocked'):
        from_plain(code, allow_pickle=True)


def test_a_view_does_not_bring_its_whole_memory():
    code, _, _ = to_plain(torch.zeros(10**6)[:2])
    assert code.untyped_storage().nbytes() == 8


@pytest.mark.parametrize(
    ('cfg', 'hint'),
    [
        (dict(optim_wrapper=dict(type='X')), ''),
        (dict(), 'has no `optim_wrapper`'),
        (
            dict(optim_wrapper=dict(dtype=torch.float16)),
            'cannot be read back as data (line 2 has torch.float16)',
        ),
    ],
)
def test_it_is_said_where_a_replay_takes_another_config(
    tmp_path, monkeypatch, cfg, hint
):
    monkeypatch.chdir(tmp_path)
    runner = train(
        tmp_path, cfg=dict(model=dict(type='ToyNet'), **cfg), save_weights=True
    )
    (log,) = Path(runner.log_dir).glob('*.log')
    (line,) = [x for x in log.read_text().splitlines() if 'run it: ' in x]
    assert line.endswith('--config FILE') == bool(hint)
    (row,) = read_rows(runner, 'dump')
    assert hint in '; '.join(row['remarks'])
    assert row['needs'] == (['config'] if hint else [])


def test_it_is_said_that_a_replay_takes_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = train(tmp_path, cfg=dict(CFG, optim_wrapper=dict(type='X')))
    (log,) = Path(runner.log_dir).glob('*.log')
    (line,) = [x for x in log.read_text().splitlines() if 'run it: ' in x]
    assert line.endswith('rank0.pt --checkpoint FILE')
    (row,) = read_rows(runner, 'dump')
    (remark,) = row['remarks']
    assert remark == 'without weights, it takes those of a checkpoint'
    assert row['needs'] == ['checkpoint']
