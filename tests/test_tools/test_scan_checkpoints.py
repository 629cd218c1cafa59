"""Scans by tools/scan_checkpoints.py, on checkpoints that a Runner saved."""

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from ranks import launch, needs_fsdp
from torch.optim import SGD
from toys import ToyNet, guard_hooks, low_precision, make_runner, wrapper

from mmnanguard.numerics import load_plain
from mmnanguard.safe_load import allow_mmengine_checkpoints

TOOL = 'scan_checkpoints'
NAN, INF = float('nan'), float('inf')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return checkpoints of iterations 2, 4 and 6, with all parts that can go
    bad.
    """
    folder = tmp_path_factory.mktemp('trained')
    hooks = guard_hooks()
    hooks['checkpoint'] = dict(
        type='CheckpointHook', interval=2, by_epoch=False
    )
    runner = make_runner(
        folder,
        wrapper(
            'NanGuardAmpOptimWrapper',
            lr=1e-3,
            optimizer='AdamW',
            **low_precision('dynamic'),
        ),
        max_iters=6,
        default_hooks=hooks,
        custom_hooks=[dict(type='EMAHook')],
    )
    runner.train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    folder = tmp_path / 'work dir'
    folder.mkdir()
    # Modified in the order of their iterations, in seconds of 1970.
    for count in (2, 4, 6):
        path = shutil.copy(trained / f'iter_{count}.pth', folder)
        os.utime(path, (count, count))
    return folder


def edit(path, change):
    allow_mmengine_checkpoints()
    time = path.stat().st_mtime
    content = load_plain(path)
    change(content)
    torch.save(content, path)
    os.utime(path, (time, time))


def set_scale(content):
    content['optimizer'].setdefault('loss_scaler', {})['scale'] = 0.0


def scan(tool, capsys, *args):
    """Return the exit status, the report, and the output."""
    file = Path(args[0]).parent / 'report.json'
    status = tool.main([*map(str, args), '--json', str(file)])

    def refuse(text):
        raise AssertionError(f'{text} is not JSON')

    report = json.loads(file.read_text(), parse_constant=refuse)
    assert report['status'] == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] in (report['advice'], 'no checkpoint found')
    return status, report, lines


def statuses(report):
    return {
        Path(row['path']).name: row['status'] for row in report['checkpoints']
    }


def findings(report, name):
    (row,) = [
        row for row in report['checkpoints'] if Path(row['path']).name == name
    ]
    return [(bad['part'], bad['name'], bad['kind']) for bad in row['findings']]


def test_a_clean_run(tool, run, capsys):
    status, report, lines = scan(tool, capsys, run)
    assert status == 0
    rows = report['checkpoints']
    assert [(row['iter'], row['status']) for row in rows] == [
        (2, 'clean'),
        (4, 'clean'),
        (6, 'clean'),
    ]
    newest = str(run / 'iter_6.pth')
    assert report['newest_clean'] == newest
    # The folder has a space in its name.
    assert lines[-1].endswith(f"; go on with --resume '{newest}'")
    assert 'masks that hold inf by design: mask' in lines
    assert not any('task/s' in line for line in lines)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            lambda c: c['state_dict']['head.weight'][0].fill_(NAN),
            ('ema', 'head.weight', 'nan'),
        ),
        (
            lambda c: c['ema_state_dict']['module.head.bias'][0].fill_(INF),
            ('weight', 'head.bias', 'inf'),
        ),
        (
            lambda c: c['ema_state_dict'][
                'module.backbone.1.running_var'
            ].fill_(1e19),
            ('weight', 'backbone.1.running_var', 'absurd'),
        ),
        (
            lambda c: c['optimizer']['state'][3]['exp_avg_sq'][0].fill_(INF),
            ('optimizer', 'head.weight exp_avg_sq', 'inf'),
        ),
        (set_scale, ('scale', 'loss_scaler.scale', 'absurd')),
    ],
    ids=['average', 'weight', 'buffer', 'moment', 'scale'],
)
def test_each_part_of_the_newest(tool, run, capsys, change, expected):
    edit(run / 'iter_6.pth', change)
    status, report, lines = scan(tool, capsys, run)
    assert status == 1
    assert findings(report, 'iter_6.pth') == [expected]
    assert report['newest_clean'] == str(run / 'iter_4.pth')
    (line,) = [line for line in lines if 'iter_6.pth' in line]
    assert expected[1] in line
    assert 'bad' in line


def test_an_older_one_may_be_bad(tool, run, capsys):
    """Older checkpoints may be bad after a rollback: only the checkpoint that
    --resume would take counts.
    """
    edit(run / 'iter_4.pth', set_scale)
    status, report, _ = scan(tool, capsys, run)
    assert status == 0
    assert statuses(report)['iter_4.pth'] == 'bad'
    assert report['newest_clean'] == str(run / 'iter_6.pth')


def test_none_is_clean(tool, run, capsys):
    for path in run.glob('*.pth'):
        edit(path, set_scale)
    status, report, lines = scan(tool, capsys, run)
    assert (status, report['newest_clean']) == (1, None)
    assert lines[-1] == 'newest clean: none'


def test_a_mask_that_changes(tool, run, capsys):
    edit(run / 'iter_2.pth', lambda c: c['state_dict']['mask'].fill_(0))
    status, report, lines = scan(tool, capsys, run)
    assert status == 1
    assert findings(report, 'iter_6.pth') == [('ema', 'mask', 'inf')]
    assert 'masks that hold inf by design: mask' in lines  # the trained one


def test_the_limit_and_one_file(tool, run, capsys):
    path = run / 'iter_4.pth'
    edit(path, lambda c: c['ema_state_dict']['module.mask'].fill_(7))
    status, report, _ = scan(tool, capsys, path, '--limit', '6.5')
    assert status == 1
    assert findings(report, 'iter_4.pth') == [('weight', 'mask', 'absurd')]
    status, report, _ = scan(tool, capsys, path, '--limit', '7')
    assert (status, len(report['checkpoints'])) == (0, 1)


class Foreign:
    """An object that would create a file if its code were run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def write_as_deepspeed(path):
    path.unlink()
    path.mkdir()
    (path / 'mp_rank_00_model_states.pt').touch()


def name_a_class(path):
    marker = path.parent / 'was_run'
    torch.save(dict(state_dict={}, meta=Foreign(marker)), path)


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (truncate, 'truncated'),
        (lambda path: path.write_text('hello\n'), 'neither a zip file'),
        (lambda path: path.write_bytes(b''), 'empty'),
        (lambda path: path.write_bytes(b'\x80\x02nonsense'), ''),
        (name_a_class, 'Unsupported global'),
        (
            lambda path: (path.unlink(), path.symlink_to('nowhere')),
            'No such file',
        ),
        (
            lambda path: (path.unlink(), path.mkdir()),
            'a folder with the files of ranks []',
        ),
        (write_as_deepspeed, 'DeepSpeed, which is not scanned'),
    ],
    ids=[
        'truncated',
        'text',
        'empty',
        'pickle',
        'class',
        'link',
        'folder',
        'deepspeed',
    ],
)
def test_an_unreadable_file(tool, run, capsys, spoil, reason):
    path = run / 'iter_6.pth'
    spoil(path)
    status, report, lines = scan(tool, capsys, run)
    (row,) = [r for r in report['checkpoints'] if r['path'] == str(path)]
    assert row['status'] == 'unreadable'
    assert reason in row['reason']
    assert 'weights_only' not in row['reason']
    assert any('iter_6.pth' in line and reason in line for line in lines)
    assert not (run / 'was_run').exists()
    assert report['newest_clean'] == str(run / 'iter_4.pth')
    if not path.is_symlink():  # a broken link has no time
        assert report['checkpoints'][-1] is row
        assert status == 1


def test_a_file_that_is_no_checkpoint(tool, run, capsys):
    torch.save([1, 2], run / 'results.pth')
    torch.save(dict(state_dict=3), run / 'three.pth')
    status, report, _ = scan(tool, capsys, run)
    assert status == 0
    file_statuses = statuses(report)
    assert (
        file_statuses['results.pth'] == file_statuses['three.pth'] == 'foreign'
    )


def test_order(tool, run, capsys):
    """Checkpoints are in order of iteration, those without one by time."""
    os.utime(run / 'iter_2.pth', (9, 9))
    os.utime(run / 'iter_4.pth', (3, 3))
    for name, time in (('a.pth', 3.5), ('b.pth', 1)):
        (run / name).write_text('broken')
        os.utime(run / name, (time, time))
    best = run / 'best_accuracy_iter_6.pth'
    shutil.copy(run / 'iter_6.pth', best)
    edit(best, lambda content: content.pop('optimizer'))
    _, report, _ = scan(tool, capsys, run)
    assert list(statuses(report)) == [
        'b.pth',
        'iter_2.pth',
        'iter_4.pth',
        'a.pth',
        'best_accuracy_iter_6.pth',
        'iter_6.pth',
    ]
    assert report['newest_clean'] == str(run / 'iter_6.pth')


def test_weights_only(tool, run, capsys):
    for path in run.glob('*.pth'):
        edit(path, lambda content: content.pop('optimizer'))
    status, report, lines = scan(tool, capsys, run)
    newest = str(run / 'iter_6.pth')
    assert (status, report['newest_clean']) == (0, newest)
    assert lines[-1].endswith(f"--cfg-options load_from='{newest}'")


def test_older_formats(tool, run, capsys):
    """Files that torch.save wrote before 1.6 cannot be memory-mapped."""
    path = run / 'iter_6.pth'
    allow_mmengine_checkpoints()
    content = load_plain(path)
    content['state_dict']['head.bias'][0] = NAN
    torch.save(content, path, _use_new_zipfile_serialization=False)
    status, report, _ = scan(tool, capsys, run)
    assert status == 1
    assert findings(report, 'iter_6.pth') == [('ema', 'head.bias', 'nan')]


def test_a_file_a_rank(tool, run, capsys):
    folder = run / 'iter_8.pth'
    folder.mkdir()
    for rank in (0, 1):
        shutil.copy(run / 'iter_6.pth', folder / f'rank{rank}.pth')
    bad = folder / 'rank1.pth'
    edit(bad, lambda c: c['state_dict']['head.bias'][0].fill_(NAN))
    expected = [('ema', 'rank 1: head.bias', 'nan')]
    for paths in ([run], [folder]):
        status, report, _ = scan(tool, capsys, *paths)
        assert findings(report, 'iter_8.pth') == expected
        assert len(report['checkpoints']) == 4 if paths == [run] else 1
    assert status == 1
    (folder / 'rank0.pth').unlink()
    _, report, _ = scan(tool, capsys, folder)
    assert 'ranks [1]' in report['checkpoints'][0]['reason']


def poison_in_place(file, size):
    """Write NaN into the first element of a storage of ``size`` bytes."""
    with zipfile.ZipFile(file) as archive:
        (info,) = [
            entry for entry in archive.infolist() if entry.file_size == size
        ]
    content = bytearray(file.read_bytes())
    # The lengths of the name and of what follows it come before the data.
    lengths = struct.unpack_from('<HH', content, info.header_offset + 26)
    start = info.header_offset + 30 + sum(lengths)
    struct.pack_into('<f', content, start, NAN)
    file.write_bytes(content)


@needs_fsdp
def test_shards_of_fsdp(tool, tmp_path, capsys):
    launch('strategy_job.py', tmp_path, 'local')
    folder = tmp_path / 'parts'
    status, report, _ = scan(tool, capsys, folder)
    assert statuses(report) == {'iter_4.pth': 'clean', 'iter_8.pth': 'clean'}
    assert [row['iter'] for row in report['checkpoints']] == [4, 8]
    # Its half of 193 * 8 + 9 parameters, padded.
    poison_in_place(folder / 'iter_8.pth' / 'rank1.pth', 777 * 4)
    status, report, _ = scan(tool, capsys, folder)
    assert status == 1
    assert findings(report, 'iter_8.pth')[-1] == (
        ('weight', 'rank 1: _flat_param', 'nan')
    )
    assert report['newest_clean'] == str(folder / 'iter_4.pth')
    # What is allowed for those files is forgotten after them.
    with pytest.raises(pickle.UnpicklingError, match='ShardedTensor'):
        load_plain(folder / 'iter_4.pth' / 'rank0.pth')


class Gan(ToyNet):
    """A model with two optimizers, used in turns."""

    def train_step(self, data, optim_wrapper):
        for part in optim_wrapper.values():
            inputs = self.data_preprocessor(data, True)
            loss, log_vars = self.parse_losses(
                self._run_forward(inputs, mode='loss')
            )
            part.update_params(loss)
        return log_vars


def test_optimizers_by_name(tool, tmp_path, capsys):
    model = Gan()
    parts = dict(head=model.head, backbone=model.backbone)
    optimizers = {
        name: OptimWrapper(SGD(part.parameters(), lr=0.1, momentum=0.9))
        for name, part in parts.items()
    }
    runner = make_runner(
        tmp_path / 'gan',
        OptimWrapperDict(**optimizers),
        model=model,
        max_iters=2,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)
        ),
        train_cfg=dict(by_epoch=False, max_iters=2),
    )
    runner.train()
    path = tmp_path / 'gan' / 'iter_2.pth'
    assert scan(tool, capsys, path)[0] == 0

    def poison(content):
        head, backbone = (content['optimizer'][name] for name in parts)
        head['state'][1]['momentum_buffer'].fill_(NAN)
        backbone['state'][1]['momentum_buffer'].fill_(INF)

    edit(path, poison)
    status, report, _ = scan(tool, capsys, path)
    assert status == 1
    assert findings(report, 'iter_2.pth') == [
        ('optimizer', 'head: head.bias momentum_buffer', 'nan'),
        ('optimizer', 'backbone: backbone.1.weight momentum_buffer', 'inf'),
    ]


def test_a_file_counts_once(tool, run, capsys):
    (run / 'latest.pth').symlink_to('iter_6.pth')
    _, report, _ = scan(tool, capsys, run, run / 'iter_6.pth', run)
    assert len(report['checkpoints']) == 3


def test_many_findings_are_shown_in_part(tool, run, capsys):
    def spoil(content):
        for state in content['optimizer']['state'].values():
            state.update(exp_avg=NAN, exp_avg_sq=NAN, more=NAN)

    edit(run / 'iter_6.pth', spoil)
    _, report, lines = scan(tool, capsys, run)
    assert len(report['checkpoints'][-1]['findings']) == 15
    assert any('... 15 in all' in line for line in lines)
    assert sum('nan 1/1' in line for line in lines) == 10


def test_progress_on_a_terminal(tool, run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    tool.main([str(run)])
    assert '3/3' in capsys.readouterr().out


def test_nothing_to_scan(tool, tmp_path, capsys):
    folder = tmp_path / 'empty'
    folder.mkdir()
    status, report, lines = scan(tool, capsys, folder)
    assert (status, report['checkpoints']) == (2, [])
    assert lines[-1] == 'no checkpoint found'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'required'),
        (['/no/such/place'], 'not found: /no/such/place'),
        (['.', '--limit', 'nan'], 'finite number above 0'),
        (['.', '--limit', 'inf'], 'finite number above 0'),
        (['.', '--limit', '0'], 'finite number above 0'),
    ],
)
def test_bad_usage(tool, args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
