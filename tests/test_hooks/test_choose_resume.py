"""A resume looks at the file first, and names what is bad in it."""

import math
import re

import pytest
import torch
from mmengine.registry import MODELS
from run_log import unwrapped_log
from toys import ToyNet, guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import TrainingHalted
from mmnanguard.hooks import choose_resume
from mmnanguard.numerics import load_plain
from mmnanguard.report import load_run
from mmnanguard.safe_load import allow_mmengine_checkpoints


def train(work_dir, max_iters=8, is_guarded=False, **keys):
    """Train with a checkpoint in every second iteration."""
    kind = 'NanGuardOptimWrapper' if is_guarded else 'OptimWrapper'
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        **keys.pop('hooks', {}),
    )
    if is_guarded:
        hooks.update(guard_hooks())
    runner = make_runner(
        work_dir,
        wrapper(kind, lr=0.01, optimizer='AdamW', **keys.pop('wrapper', {})),
        default_hooks=hooks,
        max_iters=max_iters,
        **keys,
    )
    runner.train()
    return runner


def spoil(path, where='weight', value=math.nan):
    """Write a bad number into a checkpoint."""
    allow_mmengine_checkpoints()
    saved = load_plain(path)
    if where == 'weight':
        saved['state_dict']['head.weight'][0] = value
    elif where == 'running_var':
        saved['state_dict']['backbone.1.running_var'][0] = value
    elif where == 'optimizer':
        saved['optimizer']['state'][1]['exp_avg_sq'][0] = value
    torch.save(saved, path)


def logs_in(work_dir):
    """Return the logs of all attempts, with the newest one last."""
    paths = sorted(work_dir.glob('*/*.log'))
    return [re.sub(r'\n +(?=\S)', ' ', path.read_text()) for path in paths]


@pytest.fixture
def work_dir(tmp_path):
    """Return the work dir of a run that was not guarded, 8 iterations long."""
    train(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('where', 'named'),
    [
        ('weight', "'head.weight' (weight) is nan"),
        ('running_var', "'backbone.1.running_var' (weight) is nan"),
        ('optimizer', "exp_avg_sq' (optimizer) is nan"),
    ],
)
def test_the_newest_clean_one_of_an_unguarded_run(work_dir, where, named):
    for number in (6, 8):
        spoil(work_dir / f'iter_{number}.pth', where)
    path, story = choose_resume(str(work_dir))
    assert path == str(work_dir / 'iter_4.pth')
    assert named in story
    assert 'iter_8.pth, is bad' in story


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'gone'])
def test_a_damaged_file(work_dir, damage):
    last = work_dir / 'iter_8.pth'
    if damage == 'gone':
        last.unlink()
    else:
        size = 1000 if damage == 'truncated' else 0
        last.write_bytes(last.read_bytes()[:size])
    path, story = choose_resume(str(work_dir))
    assert path == str(work_dir / 'iter_6.pth')
    assert 'unreadable' in story


def test_none_is_clean(work_dir):
    for path in work_dir.glob('*.pth'):
        spoil(path)
    path, story = choose_resume(str(work_dir))
    assert path is None
    assert 'no other is known to be clean' in story


def test_files_of_another_run_do_not_count(work_dir, tmp_path_factory):
    """Another run in the same folder was longer."""
    other = tmp_path_factory.mktemp('other')
    train(other, max_iters=14, randomness=dict(seed=5))
    for number in (5, 7, 14):
        source = other / f'iter_{number - number % 2}.pth'
        (work_dir / f'other_{number}.pth').write_bytes(source.read_bytes())
    spoil(work_dir / 'iter_8.pth')
    path, _ = choose_resume(str(work_dir))
    assert path == str(work_dir / 'iter_6.pth')


def test_a_mask_that_went_bad_does_not_spoil_the_older_files(work_dir):
    last = work_dir / 'iter_8.pth'
    saved = load_plain(last)
    assert saved['state_dict']['mask'].isinf().any()
    saved['state_dict']['mask'].fill_(math.nan)
    torch.save(saved, last)
    path, story = choose_resume(str(work_dir))
    assert path == str(work_dir / 'iter_6.pth')
    assert "'mask'" in story


@MODELS.register_module()
class OddByDesign(ToyNet):
    """A model whose buffers are not finite, or absurdly large, by design."""

    def __init__(self):
        super().__init__()
        self.register_buffer('anchors', torch.tensor([1.5, math.nan]))
        self.register_buffer('fill', torch.tensor([-1e30, 0.5]))
        self.frozen = torch.nn.Parameter(
            torch.tensor([-math.inf, 0.3]), requires_grad=False
        )


@pytest.mark.parametrize('is_bad', [False, True])
def test_tensors_that_are_odd_by_design(tmp_path, is_bad):
    model = dict(type='OddByDesign')
    train(tmp_path, model=model)
    if is_bad:
        spoil(tmp_path / 'iter_8.pth')
    runner = train(
        tmp_path, model=model, is_guarded=True, max_iters=10, resume=True
    )
    (start,) = read_rows(runner, 'start')
    assert start['iter'] == (7 if is_bad else 9)
    log = unwrapped_log(runner)
    assert ('is bad' in log) == is_bad
    assert 'IS BAD' not in log


def test_resume_alone_takes_the_clean_one(work_dir):
    spoil(work_dir / 'iter_8.pth')
    runner = train(work_dir, is_guarded=True, max_iters=10, resume=True)
    (start,) = read_rows(runner, 'start')
    assert start['iter'] == 7
    assert read_rows(runner) == []
    assert 'resuming from the last clean one' in unwrapped_log(runner)


def test_a_halt_names_no_file_that_has_gone_bad(tmp_path):
    """An audit found it clean; somebody has damaged it since."""
    keys = dict(is_guarded=True, hooks=dict(audit=dict(type='StateAuditHook')))
    train(tmp_path, max_iters=2, **keys)
    spoil(tmp_path / 'iter_2.pth', 'optimizer')
    with pytest.raises(TrainingHalted) as error:
        train(tmp_path, max_iters=8, resume=True, **keys)
    assert 'already had it' in str(error.value)
    assert '--resume' not in str(error.value)


def test_a_bad_file_that_the_user_names(work_dir):
    """The file is loaded, and warning and halt say that it was bad."""
    last = str(work_dir / 'iter_8.pth')
    spoil(last)
    with pytest.raises(TrainingHalted) as error:
        train(
            work_dir,
            is_guarded=True,
            max_iters=10,
            resume=True,
            load_from=last,
        )
    (log,) = [text for text in logs_in(work_dir) if 'IS BAD' in text]
    assert f'THE CHECKPOINT {last} IS BAD' in log
    assert "'head.weight' (weights)" in log
    assert f'The newest clean one is {work_dir / "iter_6.pth"}' in log
    story = str(error.value)
    assert f'as the loaded checkpoint {last} already had it' in story
    assert 'outside any guarded update' not in story
    assert 'EMA swaps' not in story


@pytest.mark.parametrize('is_loaded', [False, True])
def test_weights_that_were_never_initialized(tmp_path, is_loaded):
    """No other code is blamed, and no file, which lacks them."""
    path = tmp_path / 'backbone.pth'
    torch.save({'state_dict': {'head.bias': torch.zeros(2)}}, path)
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(),
        max_iters=4,
        load_from=str(path) if is_loaded else None,
    )
    runner.model.head.weight.data[0] = math.nan
    with pytest.raises(TrainingHalted) as error:
        runner.train()
    story = str(error.value)
    assert "'head.weight' is NaN, as before the first update" in story
    assert 'Fill them in __init__ or init_weights' in story
    assert 'outside any guarded update' not in story
    assert 'IS BAD' not in unwrapped_log(runner)
    # Nothing else is to be found, and no checkpoint is better.
    (step,) = load_run(tmp_path).verdict.steps
    assert step.text.startswith('initialize')
    assert step.code == ''


def test_no_rollback_to_weights_that_were_bad_from_the_start(tmp_path):
    runner = make_runner(
        tmp_path,
        wrapper(guard=dict(when_exhausted='rollback')),
        default_hooks=dict(
            guard_hooks(), rollback=dict(type='mmnanguard.RollbackHook')
        ),
        max_iters=4,
    )
    runner.model.head.weight.data[0] = math.nan
    with pytest.raises(TrainingHalted) as error:
        runner.train()
    assert runner.iter == 0
    assert 'No rollback: the weights were bad before' in str(error.value)
    assert read_rows(runner, 'rollback') == []


def test_bad_optimizer_state_is_named_once(work_dir):
    last = str(work_dir / 'iter_8.pth')
    spoil(last, 'optimizer')
    with pytest.raises(TrainingHalted):
        train(
            work_dir,
            is_guarded=True,
            max_iters=40,
            resume=True,
            load_from=last,
            hooks=dict(audit=dict(type='mmnanguard.StateAuditHook')),
        )
    (log,) = [text for text in logs_in(work_dir) if 'IS BAD' in text]
    assert log.count('IS BAD') == 1
    assert "'backbone.1.weight exp_avg_sq' (optimizer)" in log
    (row,) = load_run(str(work_dir)).summary.starts
    assert row['loaded'] == last
    assert row['loaded_bad'] == ["'backbone.1.weight exp_avg_sq' (optimizer)"]
    assert 'Look for code that changes weights' not in log


def test_weights_to_start_from(work_dir):
    """Nothing is resumed with load_from alone, and nothing offered."""
    last = str(work_dir / 'iter_8.pth')
    spoil(last)
    with pytest.raises(TrainingHalted) as error:
        train(work_dir, is_guarded=True, load_from=last)
    story = str(error.value)
    assert f'as the file of load_from already had it: {last}' in story
    assert 'Resume from a checkpoint' not in story
    (step,) = load_run(work_dir).verdict.steps
    assert step.text.startswith('mend the file of load_from')
    assert step.code == ''
