"""The learning rates of a migrated config are those of 1.x."""

import pytest
from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.runner import Runner
from rates_1x import (
    BASE,
    CASES,
    DIFFERS,
    EPOCH,
    EPOCHWISE,
    ITERWISE,
    PINNED,
    SAMPLES,
    TOTAL,
    rate,
)
from toys import ToyNet

from mmnanguard.migrate import migrate
from mmnanguard.optim.apply_guard import load_overlay

OPTIMIZER = dict(type='SGD', lr=BASE, momentum=0.9)


def migrated(tmp_path, optimizer=OPTIMIZER, **keys):
    old, new = tmp_path / 'old.py', tmp_path / 'new.py'
    keys = dict(optimizer=optimizer, **keys)
    old.write_text(''.join(f'{k} = {v!r}\n' for k, v in keys.items()))
    migration = migrate(old, load_overlay)
    new.write_text(migration.new)
    return migration.notes, Config.fromfile(new)


def replay(cfg, tmp_path, read):
    """Return the results of ``read`` before each iteration while the
    schedulers step.
    """
    runner = Runner(
        model=ToyNet(),
        work_dir=str(tmp_path / 'run'),
        train_dataloader=dict(
            batch_size=1,
            dataset=list(range(EPOCH)),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
    )
    assert runner.train_loop  # is built: schedulers end with it
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(
        runner.param_schedulers
    )
    hook, seen = ParamSchedulerHook(), []
    for iteration in range(TOTAL):
        seen.append(read(runner.optim_wrapper.param_groups[0]))
        runner.optim_wrapper._global_step = iteration  # as if it had stepped
        hook.after_train_iter(runner, iteration)
        if (iteration + 1) % EPOCH == 0 and cfg.train_cfg.by_epoch:
            hook.after_train_epoch(runner)
    return seen


@pytest.mark.parametrize('line', PINNED.strip().splitlines())
def test_the_formulas_are_mmcvs(line):
    name, *pinned = line.split()
    rates = [rate(*CASES[name], iteration) for iteration in SAMPLES]
    assert rates == pytest.approx([float(text) for text in pinned], rel=5e-6)


def test_each_case_is_pinned():
    names = [line.split()[0] for line in PINNED.strip().splitlines()]
    assert names == list(CASES)


@pytest.mark.parametrize('name', CASES)
def test_the_rates_are_those_of_1x(name, tmp_path):
    loop, config = CASES[name]
    notes, cfg = migrated(tmp_path, lr_config=config, **loop)
    rates = replay(cfg, tmp_path, lambda group: group['lr'])
    old = [rate(loop, config, iteration) for iteration in range(TOTAL)]
    off = max(abs(a - b) for a, b in zip(rates, old)) / BASE
    if name in DIFFERS:
        assert 1e-6 < off < DIFFERS[name] * 1.001
    else:
        assert off < 1e-9
    texts = [text for _, text in notes.changed]
    is_told = any('iteration earlier' in t or 'min_lr' in t for t in texts)
    assert is_told >= (name in DIFFERS)
    assert not any('lr_config' in text for _, text in notes.left)


# Of mmcv 1.7.2's hooks, from a momentum of 0.9, at SAMPLES.
MOMENTA = [
    (
        ITERWISE,
        dict(policy='cyclic', target_ratio=(0.85 / 0.95, 1)),
        (0.899899, 0.897486, 0.817018, 0.811609, 0.899955),
    ),
    (
        EPOCHWISE,
        dict(policy='CosineAnnealing', min_momentum_ratio=0.5),
        (0.9, 0.9, 0.834099, 0.675, 0.457667),
    ),
    (
        EPOCHWISE,
        dict(policy='step', step=[4, 8], gamma=0.8),
        (0.9, 0.9, 0.9, 0.72, 0.576),
    ),
]


@pytest.mark.parametrize(('loop', 'config', 'pinned'), MOMENTA)
@pytest.mark.parametrize('name', ['SGD', 'AdamW'])
def test_momenta(loop, config, pinned, name, tmp_path):
    key = dict(SGD='momentum', AdamW='betas')[name]
    optimizer = dict(SGD=dict(momentum=0.9), AdamW=dict(betas=(0.9, 0.99)))
    _, cfg = migrated(
        tmp_path,
        dict(type=name, lr=BASE, **optimizer[name]),
        momentum_config=config,
        **loop,
    )
    seen = replay(cfg, tmp_path, lambda group: group[key])
    momenta = [betas[0] for betas in seen] if name == 'AdamW' else seen
    assert [momenta[at] for at in SAMPLES] == pytest.approx(pinned, rel=5e-6)
