"""Write the files of this folder, with version 0.1 of mmnanguard.

README.md has the command. Today's tests build the same run from here, to
resume the run of 0.1.
"""

import json
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from toys import BATCH_SIZE, ToyData, everything, loader, wrapper

from mmnanguard.core import TrainingHalted

FOLDER = Path(__file__).parent
MAX_ITERS = 26
SAVED = 12  # the iteration of the checkpoint
LARGE = 9  # an image of iteration 3 that overflows in float16 only
FAULTS = [
    dict(iter=5, site='input'),
    dict(iter=7, site='grad', value='inf'),
    dict(iter=9, site='weight'),
    dict(iter=14, site='loss'),
    # 0.1 wrote its files with site='loss', whose gradients are finite. Today
    # such updates count toward no limit, and the run would not halt.
    *(
        dict(iter=number, site='activation', where='head')
        for number in (23, 24, 25)
    ),
]
SPOILT = 16  # the iteration after which the momentum is spoilt


@DATASETS.register_module()
class OneLargeImage(ToyData):
    def __init__(self, size):
        super().__init__(size)
        self.items[LARGE]['inputs'] = self.items[LARGE]['inputs'].sign() * 6e4


@HOOKS.register_module()
class SpoilMomentum(Hook):
    """Spoil the momentum outside of any update, so that only an audit can
    detect it.
    """

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.iter + 1 == SPOILT:
            states = runner.optim_wrapper.optimizer.state.values()
            next(iter(states))['momentum_buffer'].fill_(float('nan'))


class Stop(Hook):
    """End a run as a crash does, behind the checkpoint."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == SAVED:
            raise KeyboardInterrupt


def config(work_dir, name):
    """The config of the run, with the hooks of ``--guard full``."""
    return Config(
        dict(
            custom_imports=dict(imports=['written_by_0_1.make']),
            default_scope='mmengine',
            experiment_name=name,
            work_dir=str(work_dir),
            randomness=dict(seed=0),
            model=dict(type='ToyNet'),
            train_dataloader=loader(
                dict(type='OneLargeImage', size=MAX_ITERS * BATCH_SIZE)
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=MAX_ITERS),
            log_processor=dict(by_epoch=False),
            optim_wrapper=wrapper(
                'NanGuardAmpOptimWrapper',
                dtype='float16',
                loss_scale=dict(init_scale=1024.0, growth_interval=4),
                clip_grad=dict(type='ZClip', warmup=4),
                guard=dict(
                    when_exhausted='rollback',
                    divergence=dict(),
                    max_consecutive_skips=3,
                ),
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='CheckpointHook', by_epoch=False, interval=SAVED
                ),
                nan_guard=dict(type='mmnanguard.NanGuardHook', save_rng=True),
                event_log=dict(type='mmnanguard.EventLogHook'),
                event_text=dict(type='mmnanguard.EventTextHook'),
                autopsy=dict(type='mmnanguard.AutopsyHook'),
                fp32=dict(type='mmnanguard.Fp32ModulesHook', auto=True),
                input_guard=dict(
                    type='mmnanguard.InputGuardHook', action='reject'
                ),
                dump=dict(
                    type='mmnanguard.BatchDumpHook',
                    max_dumps=1,
                    save_weights=True,
                ),
                audit=dict(type='mmnanguard.StateAuditHook', interval=4),
                rollback=dict(
                    type='mmnanguard.RollbackHook',
                    interval=2,
                    max_rollbacks=2,
                    lr_factor=0.1,
                ),
                fire_drill=dict(
                    type='mmnanguard.FaultInjectionHook', faults=FAULTS
                ),
                spoil=dict(type='SpoilMomentum'),
            ),
        )
    )


def guard_state(runner):
    """Return the state of the guard, in builtins."""
    guard = runner.optim_wrapper.guard
    state = dict(
        guard=guard.state_dict(), loss_scaler=guard.scaler.state_dict()
    )
    return json.loads(json.dumps(state))


def train(runner):
    with suppress(KeyboardInterrupt, TrainingHalted):
        runner.train()
    return runner


def resume(work_dir, checkpoint, name, observer=None):
    """Train from the checkpoint until the run halts, in iteration 25."""
    cfg = config(work_dir, name)
    cfg.update(resume=True, load_from=str(checkpoint))
    runner = Runner.from_cfg(cfg)
    if observer is not None:
        runner.register_hook(observer)
    return train(runner)


def without_path(value, path):
    """Replace the path of this machine in all strings of a file's content."""
    if isinstance(value, str):
        return value.replace(path, 'work_dirs')
    if isinstance(value, dict):
        items = value.items()
        return {key: without_path(item, path) for key, item in items}
    if isinstance(value, list):
        return [without_path(item, path) for item in value]
    return value


def keep(runner, folder):
    """Copy the files that one attempt wrote, but for logs and configs."""
    log_dir = Path(runner.log_dir)
    for name in ('nanguard/events.jsonl', 'vis_data/scalars.json'):
        target = FOLDER / 'run' / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = without_path((log_dir / name).read_text(), runner.work_dir)
        target.write_text(text.replace(runner.timestamp, folder))


def keep_tensors(runner, source, target):
    content = torch.load(source, weights_only=False)
    (FOLDER / target).parent.mkdir(parents=True, exist_ok=True)
    torch.save(without_path(content, runner.work_dir), FOLDER / target)


def main():
    work_dir = Path(tempfile.mkdtemp(), 'run')
    first = Runner.from_cfg(config(work_dir, 'first'))
    first.register_hook(Stop(), 'HIGHEST')
    train(first)
    keep(first, '20260101_000000')
    dump = 'nanguard/dumps/iter_3_rank0.pt'
    target = f'run/20260101_000000/{dump}'
    keep_tensors(first, Path(first.log_dir, dump), target)
    checkpoint = work_dir / f'iter_{SAVED}.pth'
    keep_tensors(first, checkpoint, f'run/{checkpoint.name}')
    states = dict(saved=guard_state(first))

    time.sleep(1)  # runs are told apart by the second of their start
    second = resume(work_dir, checkpoint, 'second')
    keep(second, '20260101_000100')
    torch.save(everything(second), FOLDER / 'continued.pth')
    states['continued'] = guard_state(second)
    (FOLDER / 'guard_states.json').write_text(json.dumps(states, indent=1))
    shutil.rmtree(work_dir.parent)


if __name__ == '__main__':
    main()
