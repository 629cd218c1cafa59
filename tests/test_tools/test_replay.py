"""Replays of a dump by tools/replay.py equal the autopsy of the run."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from toys import NUMBERS, ToyData, guard_hooks, loader, read_rows, wrapper

TOOL = 'replay'
ILL = 13  # the second sample of the fourth iteration


class Boxes:
    """An object that wraps a tensor, as mmdet's boxes do."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __deepcopy__(self, memo):
        return Boxes(self.tensor.clone())


@DATASETS.register_module()
class SickData(ToyData):
    def __init__(self, size, ill, value, has_boxes=False):
        super().__init__(size)
        for index in ill:
            self.items[index]['inputs'] += value
        if has_boxes:
            for item in self.items:
                item['data_samples'].boxes = Boxes(torch.ones(2, 4))


@MODELS.register_module()
class SickNet(BaseModel):
    """A model whose conv overflows if ``num_needed`` images are large."""

    def __init__(self, largest, num_needed=1, norm='BN'):
        super().__init__()
        self.largest, self.num_needed = largest, num_needed
        self.conv = nn.Conv2d(3, 4, 3)
        nn.init.uniform_(self.conv.weight, 0.1, 0.3)
        kind = dict(BN=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)[norm]
        self.norm = kind(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs))
        is_large = images.flatten(1).amax(1) > 100
        images = images.clamp(max=10.0)
        if is_large.sum() >= self.num_needed:
            rows = is_large[:, None, None, None]
            images = torch.where(rows, self.largest, images)
        features = self.norm(self.conv(images).float()).relu()
        logits = self.head(self.dropout(features).mean((2, 3)))
        # As cosine schedules of momentum encoders do.
        hub = MessageHub.get_current_instance()
        progress = hub.get_info('iter') / hub.get_info('max_iters')
        return dict(loss=(1 + progress) * logits.square().mean())


def train(
    work_dir,
    ill=(ILL,),
    dtype=None,
    accumulation=1,
    dump=dict(save_weights=True),  # noqa: B006
    has_boxes=False,
    hooks=(),
    num_dumps=1,
    **model,
):
    size = 6e4 if dtype == 'float16' else 3.3e38
    keys = dict(dtype=dtype, loss_scale=8.0) if dtype else {}
    torch.manual_seed(0)
    runner = Runner.from_cfg(
        Config(
            dict(
                model=dict(type='SickNet', largest=size, **model),
                work_dir=str(work_dir),
                train_dataloader=loader(
                    dict(
                        type='SickData',
                        size=24,
                        ill=list(ill),
                        value=1e3,
                        has_boxes=has_boxes,
                    )
                ),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
                optim_wrapper=wrapper(
                    f'NanGuard{"Amp" if dtype else ""}OptimWrapper',
                    lr=0.01,
                    accumulative_counts=accumulation,
                    **keys,
                ),
                log_processor=dict(by_epoch=False),
                experiment_name=f'replay_{next(NUMBERS)}',
                default_scope='mmengine',
                randomness=dict(seed=0),
                default_hooks=dict(
                    **guard_hooks(),
                    checkpoint=dict(
                        type='CheckpointHook', by_epoch=False, interval=1
                    ),
                    autopsy=dict(type='mmnanguard.AutopsyHook'),
                    dump=dict(type='mmnanguard.BatchDumpHook', **dump),
                    **dict(hooks),
                ),
            )
        )
    )
    runner.train()
    paths = sorted(Path(runner.log_dir).glob('nanguard/dumps/*.pt'))
    assert len(paths) == num_dumps
    return runner, paths[-1]


def replay(tool, path, *options):
    """Return the exit status and the row that was written."""
    status = tool.main([str(path), '--device', 'cpu', *map(str, options)])
    file = path.with_suffix('.json')
    return status, json.loads(file.read_text()) if file.exists() else None


def assert_told_as_in_the_run(runner, row):
    (live,) = read_rows(runner, 'autopsy')
    assert live['module'] == 'conv'
    assert {key: row[key] for key in live} == live


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_it_says_what_the_run_said(tool, tmp_path, dtype, accumulation):
    runner, path = train(tmp_path, dtype=dtype, accumulation=accumulation)
    status, row = replay(tool, path)
    # The fault occurs again.
    assert status == 1
    assert_told_as_in_the_run(runner, row)
    assert row['exact']
    assert row['samples'] == [f'train/{ILL:06d}.jpg']
    assert row['batch_rows'] == [ILL % 4]
    assert row['versions'] == torch.load(path)['versions']


def test_the_rest_of_a_training_is_a_shorter_window(tool, tmp_path):
    # Iterations 5 and 6 of 6, with 4 to an update.
    runner, path = train(tmp_path, ill=(21,), accumulation=4)
    dump = torch.load(path)
    assert dump['settings']['default']['accumulation'] == 2
    assert len(dump['batches']) == 2
    _, row = replay(tool, path)
    assert_told_as_in_the_run(runner, row)
    assert row['samples'] == ['train/000021.jpg']


@pytest.mark.parametrize('has_ema', [False, True])
def test_weights_of_a_checkpoint(tool, tmp_path, capsys, has_ema):
    hooks = dict(ema=dict(type='EMAHook')) if has_ema else {}
    runner, path = train(tmp_path, dump={}, hooks=hooks)
    status, row = replay(tool, path, '--checkpoint', tmp_path / 'iter_3.pth')
    # The fault occurs again.
    assert status == 1
    assert_told_as_in_the_run(runner, row)
    assert row['exact']

    _, row = replay(tool, path, '--checkpoint', tmp_path / 'iter_2.pth')
    assert row['module'] == 'conv'
    assert not row['exact']
    assert 'is of iteration 2, the update began after 3' in (
        capsys.readouterr().out
    )


def test_without_weights_it_says_what_to_do(tool, tmp_path, capsys):
    _, path = train(tmp_path, dump={})
    assert replay(tool, path) == (2, None)
    output = capsys.readouterr().err
    assert 'Give --checkpoint, best the last one before iteration 4' in output


def test_weights_of_another_model(tool, tmp_path, capsys):
    _, path = train(tmp_path)
    torch.save(dict(state_dict={'x': torch.ones(1)}), tmp_path / 'x.pth')
    assert replay(tool, path, '--checkpoint', tmp_path / 'x.pth')[0] == 2
    assert 'lacks 8 tensors of the model' in capsys.readouterr().err


@pytest.mark.parametrize('content', [b'', b'no dump', None])
def test_a_file_that_is_no_dump(tool, tmp_path, capsys, content):
    path = tmp_path / 'x.pt'
    if content is None:
        torch.save(dict(schema=7), path)
    else:
        path.write_bytes(content)
    assert replay(tool, path) == (2, None)
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ('ill', 'num_needed'), [((13,), 1), ((12, 15), 2), ((13, 14), 1)]
)
@pytest.mark.parametrize('accumulation', [1, 2])
def test_bisect(tool, tmp_path, ill, num_needed, accumulation):
    _, path = train(
        tmp_path, ill, num_needed=num_needed, accumulation=accumulation
    )
    _, row = replay(tool, path, '--bisect')
    expected = [f'train/{number:06d}.jpg' for number in ill]
    assert row['smallest'] in (expected[:num_needed], expected[-num_needed:])
    assert row['not_run'] == 0


def test_bisect_goes_on_where_a_model_cannot_run(
    tool, tmp_path, capsys, monkeypatch
):
    forward = SickNet.forward

    def needs_two(self, inputs, *args, **kwargs):
        if len(inputs) < 2:
            raise ValueError('too few')
        return forward(self, inputs, *args, **kwargs)

    _, path = train(tmp_path)
    monkeypatch.setattr(SickNet, 'forward', needs_two)
    _, row = replay(tool, path, '--bisect')
    assert len(row['smallest']) == 2
    assert f'train/{ILL:06d}.jpg' in row['smallest']
    output = capsys.readouterr().out
    assert '1 of 4 samples: too few' in output
    assert row['not_run'] == 2
    assert '2 sets could not be run (too few): the set may be larger' in output


def test_modules_in_float32_are_so_here(tool, tmp_path):
    """The replay would otherwise blame a module that is no longer to blame."""
    fault = dict(iter=5, site='loss', value=math.nan)
    hooks = dict(
        fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
        fire_drill=guard_hooks(fault)['fire_drill'],
    )
    # In iterations 3 to 5. The second one shows that the module overflows for
    # more than one sample, and the third one is no surprise.
    _, path = train(
        *(tmp_path, (ILL - 4, ILL, ILL + 4), 'float16'),
        hooks=hooks,
        dump=dict(save_weights=True),
        num_dumps=3,
    )
    assert path.name == 'iter_5_rank0.pt'
    assert torch.load(path)['fp32_modules'] == ['conv']
    _, row = replay(tool, path)
    assert not row['repeats']
    assert row['exact']


def test_pickled_objects_are_opened_on_demand(tool, tmp_path, capsys):
    runner, path = train(tmp_path, has_boxes=True)
    (row,) = read_rows(runner, 'dump')
    assert 'Boxes takes --allow-pickle' in '; '.join(row['remarks'])
    assert replay(tool, path) == (2, None)
    assert 'holds a pickled' in capsys.readouterr().err
    status, row = replay(tool, path, '--allow-pickle')
    # The fault occurs again.
    assert status == 1
    assert_told_as_in_the_run(runner, row)


def test_another_config(tool, tmp_path):
    _, path = train(tmp_path)
    cfg = Config.fromstring(torch.load(path)['config'], '.py')
    cfg.model.largest = 1.0
    cfg.dump(tmp_path / 'cured.py')
    _, row = replay(tool, path, '--config', tmp_path / 'cured.py')
    assert not row['repeats']


def test_statistics_of_other_ranks_are_missed(tool, tmp_path, capsys):
    _, path = train(tmp_path)
    dump = torch.load(path)
    dump['config'] = dump['config'].replace(
        "type='SickNet'", "type='SickNet', norm='SyncBN'"
    )
    dump['world_size'] = 8
    torch.save(dump, path)
    _, row = replay(tool, path)
    assert not row['exact']
    assert row['module'] == 'conv'
    assert 'SyncBN had the statistics of 8 ranks' in (capsys.readouterr().out)


def test_what_happened_once_is_transient(tool, tmp_path):
    fault = dict(iter=4, site='grad', value=math.nan)
    hooks = guard_hooks(fault)
    _, path = train(
        tmp_path, ill=(), hooks=dict(fire_drill=hooks['fire_drill'])
    )
    _, row = replay(tool, path, '--bisect')
    assert not row['repeats']
    assert row['exact']
    assert 'smallest' not in row
